import type { FromProxy, ToProxy } from '../process-life.ts';
import { SupervisedProcess } from './supervised-process.ts';

/** A sidecar or gateway as a process of its own, which can be asked to drain before it is asked to end. */
export class SidecarProcess extends SupervisedProcess {
  /**
   * The workload is taken out of everybody's lists, and what is under way may end; it still serves, for the application's last calls.
   * Resolves when that is done, or after `limitMs`.
   */
  async drain(limitMs: number): Promise<void> {
    if (!this.isRunning) return;
    const request: ToProxy = { kind: 'drain' };
    let timer: NodeJS.Timeout | undefined;
    await new Promise<void>((resolve) => {
      timer = setTimeout(resolve, limitMs);
      this.once('exited', resolve);
      this.on('message', (message: FromProxy) => message?.kind === 'drained' && resolve());
      this.send(request);
    });
    clearTimeout(timer);
  }
}

/** Resolves when a proxy answers that it is ready; rejects when `signal` is aborted. */
export async function untilReady(url: string, signal: AbortSignal): Promise<void> {
  for (;;) {
    signal.throwIfAborted();
    const isReady = await fetch(url, { signal: AbortSignal.any([signal, AbortSignal.timeout(2_000)]) }).then(
      (response) => response.ok,
      () => false,
    );
    if (isReady) return;
    await new Promise((resolve) => setTimeout(resolve, 25));
  }
}
