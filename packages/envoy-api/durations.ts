/** google.protobuf.Duration to and from milliseconds. */
export function durationFromMs(ms: number): { seconds: bigint; nanos: number } {
  const seconds = Math.floor(ms / 1000);
  return { seconds: BigInt(seconds), nanos: Math.round((ms - seconds * 1000) * 1e6) };
}

export function durationToMs(duration: { readonly seconds: bigint; readonly nanos: number } | undefined): number | undefined {
  return duration === undefined ? undefined : Number(duration.seconds) * 1000 + duration.nanos / 1e6;
}

/** The longest time that a timer of Node.js can wait (24.8 days); it fires after 1 ms when asked for more. */
export const maxTimerMs = 2 ** 31 - 1;

/** A duration for a timer: a longer one waits for `maxTimerMs`. */
export function durationToTimerMs(duration: { readonly seconds: bigint; readonly nanos: number } | undefined): number | undefined {
  const ms = durationToMs(duration);
  return ms === undefined ? undefined : Math.min(ms, maxTimerMs);
}
