// Faults that a test asks for, and statements that are held.
'use strict';

const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

class Faults {
  constructor() {
    this.faults = [];
    this.waiting = new Set();
    this.down = false;
  }

  add(fault) {
    const whole = { match: '', skip: 0, count: 1, ...fault, hits: 0 };
    whole.action ??= whole.fail_at ? 'fail_at' : undefined;
    if (whole.fail_at?.after) whole.action = 'fail_after';
    if (!whole.action) throw new Error('a fault has an action');
    whole.skip = Number(whole.skip);
    whole.count = Number(whole.count);
    whole.pattern = new RegExp(whole.match, 's');
    const inner = whole.fail_at?.match ?? whole.at;
    if (['fail_at', 'fail_after', 'hold_at'].includes(whole.action)) whole.inner = new RegExp(inner ?? '', 's');
    return this.faults.push(whole);
  }

  // The next fault of this kind for a request, or null; inner is a statement of a block.
  fault(what, action, inner = null) {
    for (const fault of this.faults) {
      if (fault.action !== action || fault.count <= 0 || !fault.pattern.test(what)) continue;
      if (inner !== null && !fault.inner.test(inner)) continue;
      if (fault.skip > 0) {
        fault.skip--;
        continue;
      }
      fault.count--;
      fault.hits++;
      return fault;
    }
    return null;
  }

  hits(id) {
    return this.faults[id - 1]?.hits ?? 0;
  }

  clear() {
    for (const fault of this.faults) fault.count = 0;
    this.release();
    return 0;
  }

  release() {
    for (const go of this.waiting) go();
    return 0;
  }

  get held() {
    return this.waiting.size;
  }

  // Until /admin/release, or until it is cancelled.
  async hold(cancelled = () => false) {
    let go;
    const released = new Promise((resolve) => (go = resolve));
    this.waiting.add(go);
    let free = false;
    released.then(() => (free = true));
    while (!free && !cancelled()) await Promise.race([released, sleep(20)]);
    this.waiting.delete(go);
  }

  // Delays and holds before and after something is done.
  async pauseBefore(what, cancelled = () => false) {
    const delay = this.fault(what, 'delay');
    if (delay) for (let end = Date.now() + Number(delay.ms); Date.now() < end && !cancelled(); ) await sleep(Math.min(20, end - Date.now()));
    if (this.fault(what, 'hold')) await this.hold(cancelled);
  }

  async pauseAfter(what, cancelled) {
    if (this.fault(what, 'hold_after')) await this.hold(cancelled);
  }
}

module.exports = { Faults, sleep };
