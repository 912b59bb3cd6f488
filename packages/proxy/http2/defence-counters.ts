import type { Http2Defences } from './settings.ts';

/**
 * What a peer has done on one connection that costs us something and it nothing. Each method counts one more, and returns the reason why that
 * is too much, or undefined.
 */
export class DefenceCounters {
  readonly #limits: Http2Defences;
  #streamsOpened: number;
  #emptyFrames: number;
  #priorityFrames: number;
  #windowUpdates: number;
  #prematureResets: number;
  /** What may still be spent on frames that want an answer; refilled by time, and by frames that carry something. */
  #tokens: number;
  #tokensAt: number;

  constructor(limits: Http2Defences, now: number) {
    this.#limits = limits;
    this.#streamsOpened = 0;
    this.#emptyFrames = 0;
    this.#priorityFrames = 0;
    this.#windowUpdates = 0;
    this.#prematureResets = 0;
    this.#tokens = limits.controlFrameBurst;
    this.#tokensAt = now;
  }

  streamOpened(): void {
    this.#streamsOpened++;
  }

  /** DATA without content that does not end anything. */
  emptyData(): string | undefined {
    return ++this.#emptyFrames > this.#limits.maxEmptyFrames ? 'empty_frames_flood' : undefined;
  }

  contentReceived(): void {
    this.#emptyFrames = 0;
    if (this.#tokens < this.#limits.controlFrameBurst) this.#tokens++;
  }

  priority(): string | undefined {
    return ++this.#priorityFrames > this.#limits.maxPriorityFramesPerStream * (1 + this.#streamsOpened) ? 'priority_flood' : undefined;
  }

  /** As many as Envoy allows: two for each stream, and for each DATA frame of ours. */
  windowUpdate(dataFramesSent: number): string | undefined {
    const most = 5 + 2 * (this.#streamsOpened + this.#limits.maxWindowUpdatesPerDataFrame * dataFramesSent);
    return ++this.#windowUpdates > most ? 'window_update_flood' : undefined;
  }

  /** A frame that wants an answer (SETTINGS, PING), or that is about what is over (RST_STREAM). */
  control(kind: 'settings' | 'ping' | 'reset' | 'goaway', now: number): string | undefined {
    if (--this.#tokens >= 0) return undefined;
    const { controlFrameBurst, controlFramesPerSecond } = this.#limits;
    const earned = Math.floor(((now - this.#tokensAt) / 1000) * controlFramesPerSecond);
    this.#tokensAt = now;
    this.#tokens = Math.min(controlFrameBurst, this.#tokens + earned);
    return this.#tokens >= 0 ? undefined : `${kind}_flood`;
  }

  /** Answers that wait since the peer does not read them. */
  queuedAnswers(count: number): string | undefined {
    return count > this.#limits.maxQueuedControlFrames ? 'outbound_control_flood' : undefined;
  }

  /** CVE-2023-44487, and streams that are made to be reset by us: what is given up at once has cost the client nothing and us a request. */
  streamReset(ageMs: number): string | undefined {
    if (ageMs < this.#limits.prematureResetMs) this.#prematureResets++;
    const isMuch = this.#streamsOpened >= this.#limits.prematureResetStreams && this.#prematureResets * 2 > this.#streamsOpened;
    return isMuch ? 'rapid_reset' : undefined;
  }
}
