import { timerMs } from './duration.ts';
import type { ErrorBoundary } from './error-boundary.ts';

/** A timer that is later than this was held up by a busy event loop. */
const toleratedMs = 100;

/**
 * Waits for a peer. When the event loop was late, what the peer has sent meanwhile has not been read yet: the time by which it was late is added. Returns
 * how to stop waiting. `failed` runs when `expired` has thrown.
 */
export function patientTimeout(boundary: ErrorBoundary, ms: number, expired: () => void, failed?: () => void): () => void {
  const look = () => {
    const now = performance.now();
    const lateMs = now - dueAt;
    if (lateMs <= toleratedMs) return expired();
    const moreMs = timerMs(Math.min(ms, lateMs));
    dueAt = now + moreMs;
    timer = boundary.after(moreMs, look, failed);
  };
  let dueAt = performance.now() + timerMs(ms);
  let timer = boundary.after(ms, look, failed);
  return () => clearTimeout(timer);
}
