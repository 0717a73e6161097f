/*
 * hooks.h
 *		Hooks on utility commands and object drops.
 */
#ifndef RESYNC_HOOKS_H
#define RESYNC_HOOKS_H

/* _PG_init, in the postmaster. */
extern void resync_hooks_install(void);

#endif /* RESYNC_HOOKS_H */
