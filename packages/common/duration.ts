/**
 * Durations as configuration writes them: Go's form (`1h30m`, `7s`, `250ms`), which the protobuf JSON form (`0.5s`) is part of.
 */
const unitsInMs: Readonly<Record<string, number>> = { ns: 1e-6, us: 1e-3, µs: 1e-3, ms: 1, s: 1000, m: 60_000, h: 3_600_000 };
const whole = /^(?:\d+(?:\.\d*)?(?:ns|us|µs|ms|s|m|h))+$/;
const part = /(\d+(?:\.\d*)?)(ns|us|µs|ms|s|m|h)/g;

/** Milliseconds, or undefined when `text` is no duration. A bare number has no unit and is refused, except `0`. */
export function parseDurationMs(text: string): number | undefined {
  if (text === '0') return 0;
  if (!whole.test(text)) return undefined;
  let total = 0;
  for (const [, amount, unit] of text.matchAll(part)) total += Number(amount) * unitsInMs[unit!]!;
  return Number.isFinite(total) && total <= 315_576_000_000_000 ? total : undefined;
}

/** The longest time that a timer of Node.js can wait (24.8 days); it fires after 1 ms when asked for more. */
export const maxTimerMs = 2 ** 31 - 1;

/** What to give to a timer for a duration that comes from configuration or a peer: a longer one waits for `maxTimerMs`. */
export function timerMs(ms: number): number {
  return Number.isNaN(ms) ? maxTimerMs : Math.min(maxTimerMs, Math.max(0, ms));
}

/** A duration for people: `450ms`, `7s`, `2m5s`, `3h`, `4d`. */
export function formatDurationMs(ms: number): string {
  if (ms < 1000) return `${Math.round(ms)}ms`;
  const seconds = Math.floor(ms / 1000);
  if (seconds < 60) return `${seconds}s`;
  const minutes = Math.floor(seconds / 60);
  if (minutes < 60) return seconds % 60 === 0 ? `${minutes}m` : `${minutes}m${seconds % 60}s`;
  const hours = Math.floor(minutes / 60);
  if (hours < 48) return minutes % 60 === 0 ? `${hours}h` : `${hours}h${minutes % 60}m`;
  return `${Math.floor(hours / 24)}d`;
}
