# resync: PGXS build.  PG_CONFIG chooses the server.
EXTENSION = resync
MODULE_big = resync
DATA = sql/resync--1.0.sql
PGFILEDESC = "resync - mirrors of PostgreSQL tables at other databases"

OBJS = $(patsubst %.c,%.o,$(sort $(wildcard src/*.c src/*/*.c)))

PG_CONFIG ?= pg_config
# HTTP destinations; pkg-config finds them wherever they are
PKG_CONFIG ?= pkg-config
NET_LIBS = libcurl libzstd liblz4 zlib json-c libcrypto

PG_CPPFLAGS = -I$(srcdir)/src -I$(shell $(PG_CONFIG) --includedir) $(shell $(PKG_CONFIG) --cflags $(NET_LIBS) 2>/dev/null)
PG_CFLAGS = -Wall -Wextra -Werror -Wno-unused-parameter -Wno-sign-compare -Wno-missing-field-initializers -Wno-cast-function-type -Wno-declaration-after-statement
SHLIB_LINK = -lpq $(or $(shell $(PKG_CONFIG) --libs $(NET_LIBS) 2>/dev/null),-lcurl -lzstd -llz4 -lz -ljson-c -lcrypto)

ifdef RESYNC_DEBUG
PG_CPPFLAGS += -DRESYNC_DEBUG
endif

REGRESS = $(patsubst sql/%.sql,%,$(filter-out sql/resync--%,$(sort $(wildcard sql/*.sql))))

PGXS := $(shell $(PG_CONFIG) --pgxs)
include $(PGXS)

# PGXS does not track headers
$(OBJS) $(OBJS:.o=.bc): $(wildcard $(srcdir)/src/*.h $(srcdir)/src/*/*.h)

# installcheck needs a server that is set up for it: say so before anything fails
installcheck: check-server
.PHONY: check-server
check-server:
	@psql="$(bindir)/psql -XAtq -d $${PGDATABASE:-postgres}"; \
	libs=$$($$psql -c 'SHOW shared_preload_libraries') || exit 1; \
	case ", $$libs," in \
	*[,\ ]resync,*) ;; \
	*) echo "set shared_preload_libraries = '$${libs:+$$libs, }resync' and restart the server" >&2; exit 1 ;; \
	esac; \
	test "$$($$psql -c 'SHOW wal_level')" = logical || \
	{ echo "set wal_level = logical and restart the server" >&2; exit 1; }

-include test/test.mk
