/**
 * Loaded with `--import` into a process whose clock is to be wrong: `Date` is off by the number of milliseconds in the file that
 * MIZZEN_TEST_CLOCK names, and follows that file. Timers and OpenSSL keep the clock of the machine.
 */
import { readFileSync } from 'node:fs';

const path = process.env['MIZZEN_TEST_CLOCK'] ?? '';
const followEveryMs = 20;
const RealDate = Date;
let shiftMs = 0;

const follow = () => {
  try {
    shiftMs = Number(readFileSync(path, 'utf8'));
  } catch {
    // It is being written.
  }
};
follow();
setInterval(follow, followEveryMs).unref();

const now = () => RealDate.now() + shiftMs;
globalThis.Date = new Proxy(RealDate, {
  construct: (target, args, newTarget) => Reflect.construct(target, args.length === 0 ? [now()] : args, newTarget) as object,
  apply: () => new RealDate(now()).toString(),
  get: (target, name) => (name === 'now' ? now : (Reflect.get(target, name) as unknown)),
});
