import { errorBoundary, type Logger, messageOf } from '@mizzen/common';
import type { CanaryRoute, ResiliencyPolicy, Subscription } from '@mizzen/envoy-api';
import type { BrokerDriver, BrokerSubscription, Delivery } from '../brokers/driver.ts';
import type { AppChannel, DeliveredEvent, DeliveryOutcome } from './app-channel.ts';
import { type BulkItem, BulkQueue } from './bulk-queue.ts';
import { readEvent } from './cloud-events.ts';
import { EventRouter } from './event-router.ts';
import type { MessageMetrics } from './message-metrics.ts';

const boundary = errorBoundary('message.delivery');
const waiting = errorBoundary('message.timer');

export interface SubscriberOptions {
  readonly subscription: Subscription;
  readonly group: string;
  readonly driver: BrokerDriver;
  readonly channel: AppChannel;
  /** Of another version of the application; undefined: it cannot be reached. */
  readonly canaryChannel: (route: CanaryRoute['routes'][number]) => AppChannel | undefined;
  readonly canaries: readonly CanaryRoute[];
  readonly resiliency: ResiliencyPolicy | undefined;
  /** Puts a message that could not be delivered on another topic. */
  readonly deadLetter: (delivery: Delivery, reason: string, done: (problem: string | undefined) => void) => void;
  /** The broker delivers nothing, or nothing more, to this subscription. Close it. */
  readonly onRefused: (reason: string) => void;
  readonly metrics: MessageMetrics;
  readonly logger: Logger;
  readonly random: () => number;
}

const defaultTimeoutMs = 60_000;
const defaultMaxInFlight = 100;
const firstPauseMs = 100;
const longestPauseMs = 30_000;
/** Before a step that has thrown here is tried again. */
const failedPauseMs = 1_000;
/** A message that comes while this replica closes is given to another one after so long. */
const drainPauseMs = 200;
const reportEveryMs = 10_000;
/** A bulk that is not full waits for more so long at most. */
const maxBulkWaitMs = 60_000;
/** Topics that a message has been on as a dead letter. */
export const maxDeadLetterHops = 16;
const trailHeader = 'x-mizzen-dead-letter-trail';

/** The topics on which a message could not be delivered. */
export function deadLetterTrail(headers: Readonly<Record<string, string>>): string[] {
  const trail = headers[trailHeader] ?? '';
  return trail === '' ? [] : trail.split(',');
}

/** The trail of a dead letter that leaves a topic. */
export const nextTrail = (headers: Readonly<Record<string, string>>, topic: string) => ({ [trailHeader]: [...deadLetterTrail(headers), topic].join(',') });

/** A message on its way to the application. */
interface Job extends BulkItem {
  readonly delivery: Delivery;
  attempts: number;
}

/**
 * One subscription at work: takes messages from the broker, chooses where each goes, and stays with it until the application has taken it, or it is a dead
 * letter. Messages of one key go one after the other, also over retries; others side by side. A message that is being tried again keeps its place with the
 * broker: when this sidecar ends, somebody else gets it.
 */
export class Subscriber {
  readonly subscription: Subscription;
  readonly group: string;
  readonly #options: SubscriberOptions;
  readonly #router: EventRouter;
  readonly #timers: Set<NodeJS.Timeout>;
  /** Jobs of a key that wait for the one before; the key is there while one is under way. */
  readonly #byKey: Map<string, Job[]>;
  readonly #bulk: BulkQueue<Job> | undefined;
  #opening: Promise<BrokerSubscription> | undefined;
  /** The broker has taken the subscription. */
  #opened: BrokerSubscription | undefined;
  /** When a failing message was last named in the log. */
  #reportedAtMs: number;
  #loopReportedAtMs: number;
  /** Handlers that run. */
  #running: number;
  #isDraining: boolean;
  #drained: () => void;
  #isClosed: boolean;

  /** Throws Error for rules that are no CEL. */
  constructor(options: SubscriberOptions) {
    this.subscription = options.subscription;
    this.group = options.group;
    this.#options = options;
    this.#router = new EventRouter(options.subscription);
    this.#timers = new Set();
    this.#byKey = new Map();
    const { bulk } = options.subscription;
    this.#bulk =
      bulk === undefined
        ? undefined
        : new BulkQueue({
            maxItems: Math.max(1, bulk.maxMessagesCount),
            maxWaitMs: Math.max(0, Math.min(maxBulkWaitMs, bulk.maxAwaitDurationMs)),
            send: (jobs) => this.#sendBulk(jobs),
          });
    this.#opening = undefined;
    this.#opened = undefined;
    this.#reportedAtMs = Number.NEGATIVE_INFINITY;
    this.#loopReportedAtMs = Number.NEGATIVE_INFINITY;
    this.#running = 0;
    this.#isDraining = false;
    this.#drained = () => {};
    this.#isClosed = false;
  }

  /** Takes messages from the broker as soon as it can be reached. */
  open(): void {
    const { metadata, topic } = this.subscription;
    const maxInFlight = Number(metadata['maxInFlight']) || defaultMaxInFlight;
    this.#opening = this.#options.driver.subscribe(
      { topic, group: this.group, maxInFlight: Math.max(1, Math.min(10_000, maxInFlight)), from: metadata['startFrom'] === 'latest' ? 'latest' : 'earliest' },
      (delivery) => this.#take(delivery),
      (reason) => this.#options.onRefused(reason),
    );
    this.#opening
      .then((opened) => {
        this.#opened = opened;
      })
      .catch((error: unknown) => this.#options.onRefused(messageOf(error)));
  }

  /** Takes nothing more; handlers that run may end within `drainMs`, and what waits goes back to the broker. */
  async close(drainMs: number): Promise<void> {
    this.#isDraining = true;
    for (const timer of this.#timers) clearTimeout(timer);
    this.#bulk?.close();
    if (drainMs > 0 && this.#running > 0) {
      // A broker that is away is not waited for.
      void this.#opening?.then((opened) => opened.retire?.()).catch(() => {});
      await new Promise<void>((resolve) => {
        const timer = setTimeout(resolve, drainMs);
        this.#drained = () => {
          clearTimeout(timer);
          resolve();
        };
      });
    }
    this.#isClosed = true;
    const opened = await Promise.race([
      this.#opening?.catch(() => undefined),
      new Promise<undefined>((resolve) => setTimeout(() => resolve(undefined), 1_000).unref()),
    ]);
    if (opened === undefined) void this.#opening?.then((late) => late.close()).catch(() => {});
    await opened?.close();
  }

  /** A handler has ended. */
  #ended(): void {
    if (--this.#running === 0 && this.#isDraining) this.#drained();
  }

  lag(): Promise<number | undefined> {
    return this.#options.driver.lag(this.subscription.topic, this.group);
  }

  #take(delivery: Delivery): void {
    // A broker that knows of retiring gives it to the next replica when this one leaves, before what follows it: given back now, it would be overtaken.
    if (this.#isDraining) return this.#opened?.retire === undefined ? delivery.nack(drainPauseMs) : undefined;
    const { key } = delivery;
    const job: Job = { delivery, attempts: 0, key, sequence: 0 };
    this.#options.metrics.inFlight(this.subscription, this.group, 1);
    if (this.#bulk !== undefined) return this.#bulk.add(job);
    if (key === '') return this.#try(job);
    const waiting = this.#byKey.get(key);
    if (waiting !== undefined) return void waiting.push(job);
    this.#byKey.set(key, []);
    this.#try(job);
  }

  #try(job: Job): void {
    if (this.#isDraining) return;
    job.attempts++;
    try {
      boundary.enter();
      this.#hand(job);
    } catch (error) {
      boundary.caught(error);
      // One message waits alone: what is wrong here is not the application's word about it, and must not cost it.
      this.#decide(job, { status: 'RETRY', reason: `it cannot be handed to the application: ${messageOf(error)}` });
    }
  }

  #hand(job: Job): void {
    const { delivery } = job;
    const event = this.#eventOf(delivery);
    const path = this.#router.pathFor(event.event);
    if (path === '') return this.#finish(job, { status: 'DROP', reason: 'no rule of the subscription matches it, and there is no default' });
    const startedAt = performance.now();
    const { channel, target } = this.#channelFor(delivery);
    this.#running++;
    let isOver = false;
    const over = (outcome: DeliveryOutcome) => {
      if (isOver) return;
      isOver = true;
      this.#options.metrics.delivered(this.subscription, this.group, outcome.status, target, performance.now() - startedAt);
      this.#decide(job, outcome);
      this.#ended();
    };
    try {
      channel.deliver({ ...event, path }, this.#options.resiliency?.timeoutMs ?? defaultTimeoutMs, over);
    } catch (error) {
      over({ status: 'RETRY', reason: messageOf(error) });
    }
  }

  #eventOf(delivery: Delivery): Omit<DeliveredEvent, 'path'> {
    const { pubsubname: pubsub, topic, metadata } = this.subscription;
    const about = { id: delivery.id, pubsub, topic, contentType: delivery.headers['content-type'] ?? '' };
    const { event, json } = readEvent(delivery.body, metadata['rawPayload'] === 'true', about);
    return { pubsub, topic, event, json, headers: delivery.headers };
  }

  /** A share of the messages, or those with certain headers, go to another version; to this one when that has nobody. */
  #channelFor(delivery: Delivery): { readonly channel: AppChannel; readonly target: string } {
    for (const canary of this.#options.canaries)
      for (const route of canary.routes) {
        const named = Object.entries(route.headers);
        const isMeant = named.length > 0 ? named.every(([name, value]) => delivery.headers[name] === value) : this.#options.random() * 100 < route.weight;
        if (!isMeant) continue;
        const channel = this.#options.canaryChannel(route);
        if (channel !== undefined) return { channel, target: route.cluster.split('|')[2] || 'canary' };
      }
    return { channel: this.#options.channel, target: '' };
  }

  #decide(job: Job, outcome: DeliveryOutcome): void {
    if (this.#isClosed) return;
    if (outcome.status !== 'RETRY') return this.#finish(job, outcome);
    // Another replica, or the next start, takes it from here.
    if (this.#isDraining) return this.#leave(job);
    if (job.attempts === 1) this.#reportRetry(job, outcome.reason);
    const deadLetterTopic = this.#deadLetterTopic(job);
    const policy = this.#options.resiliency?.retry;
    // As in Dapr: with a dead letter topic and no policy, the first failure is the last.
    const maxRetries =
      policy === undefined ? (deadLetterTopic === '' ? Number.POSITIVE_INFINITY : 0) : policy.maxRetries < 0 ? Number.POSITIVE_INFINITY : policy.maxRetries;
    if (job.attempts <= maxRetries) {
      const pause =
        policy?.policy === 'constant'
          ? policy.durationMs
          : Math.min(policy?.maxIntervalMs ?? longestPauseMs, (policy?.durationMs || firstPauseMs) * 2 ** Math.min(30, job.attempts - 1)) *
            (0.5 + this.#options.random() / 2);
      return this.#later(pause, () => (this.#bulk === undefined ? this.#try(job) : this.#bulk.add(job)));
    }
    if (deadLetterTopic === '') {
      // The policy's patience has ended; the broker's has not. Order by key ends here: the policy says to go on.
      this.#options.logger.warn(`a message could not be delivered: ${outcome.reason}. It will come again.`, {
        topic: this.subscription.topic,
        id: job.delivery.id,
      });
      this.#leave(job);
      return job.delivery.nack(longestPauseMs);
    }
    this.#deadLetter(job, outcome.reason);
  }

  /** A message that fails is named once in a while, so that one that is retried for ever is seen. */
  #reportRetry(job: Job, reason: string): void {
    const now = performance.now();
    if (now - this.#reportedAtMs < reportEveryMs) return;
    this.#reportedAtMs = now;
    const { pubsubname: pubsub, topic } = this.subscription;
    this.#options.logger.warn(`a message was not accepted by the application: ${reason}`, { pubsub, topic, id: job.delivery.id });
  }

  /** Where a message goes that cannot be delivered; '': nowhere, it stays. A dead letter that comes back to a topic where it has been stays there. */
  #deadLetterTopic({ delivery }: Job): string {
    const { deadLetterTopic, topic } = this.subscription;
    if (deadLetterTopic === '') return '';
    const trail = deadLetterTrail(delivery.headers);
    if (!trail.includes(deadLetterTopic) && trail.length < maxDeadLetterHops) return deadLetterTopic;
    const now = performance.now();
    if (now - this.#loopReportedAtMs > reportEveryMs) {
      this.#loopReportedAtMs = now;
      const why = trail.includes(deadLetterTopic) ? 'it has been on that topic' : `it has been on ${maxDeadLetterHops} topics (maxDeadLetterHops)`;
      this.#options.logger.error(`a dead letter stays on its topic and is tried again, since ${why}: subscribe dead letter topics without a loop`, {
        ...{ topic, deadLetterTopic, trail: trail.join(','), id: delivery.id },
      });
    }
    return '';
  }

  #deadLetter(job: Job, reason: string, failures = 0): void {
    this.#options.deadLetter(job.delivery, reason, (problem) => {
      if (this.#isClosed) return;
      if (problem === undefined) {
        this.#options.metrics.deadLettered(this.subscription, this.group);
        this.#leave(job);
        return job.delivery.ack();
      }
      // It is not lost: it stays where it is until it can be put there.
      this.#options.logger.warn(`a dead letter could not be stored: ${problem}`, { topic: this.subscription.deadLetterTopic });
      this.#later(Math.min(longestPauseMs, 1_000 * 2 ** Math.min(30, failures)), () => this.#deadLetter(job, reason, failures + 1));
    });
  }

  #finish(job: Job, outcome: DeliveryOutcome): void {
    if (outcome.status === 'DROP') {
      this.#options.logger.warn(`a message was dropped: ${outcome.reason}`, {
        pubsub: this.subscription.pubsubname,
        topic: this.subscription.topic,
        id: job.delivery.id,
      });
      this.#options.metrics.dropped(this.subscription, this.group);
      // Dapr: dropped messages go to the dead letter topic too, where there is one.
      if (this.#deadLetterTopic(job) !== '') return this.#deadLetter(job, outcome.reason);
    }
    this.#leave(job);
    job.delivery.ack();
  }

  /** Whoever waits for this one's key is next. */
  #leave(job: Job): void {
    this.#options.metrics.inFlight(this.subscription, this.group, -1);
    if (this.#bulk !== undefined) return this.#bulk.settled(job);
    const { key } = job;
    if (key === '') return;
    const waiting = this.#byKey.get(key);
    const next = waiting?.shift();
    if (next !== undefined && !this.#isDraining) this.#try(next);
    else this.#byKey.delete(key);
  }

  #later(ms: number, then: () => void): void {
    const due = () => {
      this.#timers.delete(timer);
      then();
    };
    const again = () => {
      this.#timers.delete(timer);
      if (!this.#isDraining) this.#later(failedPauseMs, then);
    };
    const timer = waiting.after(ms, due, again);
    this.#timers.add(timer);
  }

  // ---- many at a time ----

  #sendBulk(jobs: readonly Job[]): void {
    if (this.#isDraining) return;
    const byPath = new Map<string, { readonly job: Job; readonly event: DeliveredEvent & { readonly entryId: string } }[]>();
    for (const [i, job] of jobs.entries()) {
      job.attempts++;
      try {
        boundary.enter();
        const event = this.#eventOf(job.delivery);
        const path = this.#router.pathFor(event.event);
        if (path === '') this.#finish(job, { status: 'DROP', reason: 'no rule of the subscription matches it, and there is no default' });
        else byPath.set(path, [...(byPath.get(path) ?? []), { job, event: { ...event, path, entryId: String(i) } }]);
      } catch (error) {
        boundary.caught(error);
        // One message waits alone.
        this.#decide(job, { status: 'RETRY', reason: `it cannot be handed to the application: ${messageOf(error)}` });
      }
    }
    const { pubsubname, topic } = this.subscription;
    for (const [path, entries] of byPath) {
      const startedAt = performance.now();
      this.#running++;
      let isOver = false;
      const over = (outcomeOf: (entryId: string) => DeliveryOutcome) => {
        if (isOver) return;
        isOver = true;
        for (const { job, event } of entries) {
          const outcome = outcomeOf(event.entryId);
          this.#options.metrics.delivered(this.subscription, this.group, outcome.status, '', performance.now() - startedAt);
          this.#decide(job, outcome);
        }
        this.#ended();
      };
      try {
        this.#options.channel.deliverBulk(
          path,
          pubsubname,
          topic,
          entries.map(({ event }) => event),
          this.#options.resiliency?.timeoutMs ?? defaultTimeoutMs,
          (outcomes) => over((entryId) => outcomes.get(entryId) ?? { status: 'RETRY', reason: 'no answer' }),
        );
      } catch (error) {
        over(() => ({ status: 'RETRY', reason: messageOf(error) }));
      }
    }
  }
}
