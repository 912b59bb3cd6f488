import { timerMs } from '@mizzen/common';

/** google.protobuf.Duration to and from milliseconds. */
export function durationFromMs(ms: number): { seconds: bigint; nanos: number } {
  const seconds = Math.floor(ms / 1000);
  return { seconds: BigInt(seconds), nanos: Math.round((ms - seconds * 1000) * 1e6) };
}

export function durationToMs(duration: { readonly seconds: bigint; readonly nanos: number } | undefined): number | undefined {
  return duration === undefined ? undefined : Number(duration.seconds) * 1000 + duration.nanos / 1e6;
}

/** A duration for a timer: see `timerMs`. */
export function durationToTimerMs(duration: { readonly seconds: bigint; readonly nanos: number } | undefined): number | undefined {
  const ms = durationToMs(duration);
  return ms === undefined ? undefined : timerMs(ms);
}
