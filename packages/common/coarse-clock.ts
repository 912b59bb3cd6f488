/**
 * A clock for what need not be known to the millisecond (when a connection was last used): reading it costs nothing, and it is at most
 * `stepMs` behind `performance.now()`, in whose milliseconds it counts. It only ticks while the process has other reasons to live.
 */
const stepMs = 100;

let now = performance.now();
setInterval(() => {
  now = performance.now();
}, stepMs).unref();

export function coarseNow(): number {
  return now;
}
