import type tls from 'node:tls';
import { Backoff, errorBoundary, type Logger, MizzenError, messageOf } from '@mizzen/common';
import { type MessagingConfig, noMessaging, type PubSubComponent, type Subscription } from '@mizzen/envoy-api';
import type { Cluster } from '@mizzen/proxy/upstream/cluster';
import { deniedPrefix } from '../broker/frames.ts';
import type { BrokerDriver, OutgoingMessage } from '../brokers/driver.ts';
import { EmbeddedDriver } from '../brokers/embedded.ts';
import { makeDriver } from '../brokers/make-driver.ts';
import { maxRecordBytes } from '../log/record.ts';
import { refusalOf } from '../policy/topic-access.ts';
import type { AppFields } from './api-token.ts';
import type { AppChannel } from './app-channel.ts';
import { InvalidEvent, wrap } from './cloud-events.ts';
import { HttpAppChannel } from './http-app-channel.ts';
import type { MessageMetrics } from './message-metrics.ts';
import { nextTrail, Subscriber } from './subscriber.ts';

const measuring = errorBoundary('message.lag');
const publishing = errorBoundary('message.publish');

export interface RuntimeOptions {
  /** What it is called before the control plane has said anything. */
  readonly appId: string;
  /** This workload's identity, `spiffe://...`. */
  readonly identity: string;
  readonly namespace: string;
  /** undefined: nobody subscribes here, only publishes. */
  readonly channel: AppChannel | undefined;
  /** Clusters of the mesh, for other versions of the application. */
  readonly findCluster: (name: string) => Cluster | undefined;
  readonly meshTls: (() => tls.ConnectionOptions) | undefined;
  readonly metrics: MessageMetrics;
  readonly logger: Logger;
  readonly random?: () => number;
  /** For other versions of the application. */
  readonly appFields?: AppFields;
}

export interface Publication {
  readonly pubsub: string;
  readonly topic: string;
  readonly contentType: string;
  readonly body: Buffer;
  /** `rawPayload`, `ttlInSeconds`, `partitionKey` (or `key`), `delayInSeconds`, `cloudevent.*`; `x-...` travel as headers. */
  readonly metadata: Readonly<Record<string, string>>;
  readonly traceparent: string;
  readonly tracestate: string;
  /** The body as text that is known to be JSON; where it is there the body is only needed raw. */
  readonly json?: string | undefined;
}

/** Why something was not published: a code of Dapr's and the status of HTTP that it stands for. */
export interface PublishProblem {
  readonly status: number;
  readonly code: string;
  readonly message: string;
}

/** A subscription that lasts as long as a caller's stream. */
interface Stream {
  readonly subscription: Subscription;
  readonly key: string;
  readonly end: (reason: StreamEnd) => void;
}

/** `denied`: access has been withdrawn. Otherwise what the stream depends on has changed, and the caller opens it again. */
export interface StreamEnd {
  readonly isDenied: boolean;
  readonly message: string;
}

interface Opened {
  readonly component: PubSubComponent;
  readonly key: string;
  readonly driver: Promise<BrokerDriver>;
  ready: BrokerDriver | undefined;
  problem: string | undefined;
}

const lagEveryMs = 5_000;
/** A handler that runs when its subscriber closes may end within this time. */
export const maxDrainMs = 10_000;
export const publisherHeader = 'x-mizzen-publisher';
const maxTopicLength = 200;
/** Before a step that has thrown here is tried again. */
const failedPauseMs = 1_000;
const internalError = 'internal error';
/** Of a partition key. */
export const maxKeyBytes = 4 * 1024;
/** Of the headers that travel with a message, as JSON. */
export const maxHeaderBytes = 64 * 1024;
/** What a dead letter has in addition: who published it, the reason, and the topics it has been on. */
const maxDeadLetterBytes = 16 * 1024;
/** Headers of fewer characters are not measured. */
const usualHeaderChars = 1_000;
/** Of a message's body in its envelope. */
export const maxMessageBytes = maxRecordBytes - maxKeyBytes - maxHeaderBytes - maxDeadLetterBytes;
/** Why a message became a dead letter, in its header. */
const maxReasonChars = 500;

/** The message mesh in one sidecar: components, what the application publishes, and what it has subscribed to. */
export class MessageRuntime {
  readonly #options: RuntimeOptions;
  readonly #components: Map<string, Opened>;
  readonly #subscribers: Map<string, { readonly subscriber: Subscriber; readonly key: string }>;
  readonly #streams: Set<Stream>;
  readonly #lagTimer: NodeJS.Timeout;
  #config: MessagingConfig;
  #isConfigured: boolean;
  #programmatic: readonly Subscription[];
  #updating: Promise<void>;
  #isClosed: boolean;
  /** When refused subscriptions are tried again. */
  readonly #refusals: Backoff;
  #retry: NodeJS.Timeout | undefined;

  constructor(options: RuntimeOptions) {
    this.#options = options;
    this.#components = new Map();
    this.#subscribers = new Map();
    this.#streams = new Set();
    this.#config = { ...noMessaging, appId: options.appId };
    this.#isConfigured = false;
    this.#programmatic = [];
    this.#updating = Promise.resolve();
    this.#isClosed = false;
    this.#refusals = new Backoff(1_000, 30_000);
    this.#retry = undefined;
    this.#lagTimer = measuring.every(lagEveryMs, () => measuring.start(() => this.#measureLag())).unref();
  }

  get appId(): string {
    return this.#config.appId;
  }

  get config(): MessagingConfig {
    return this.#config;
  }

  /** Subscriptions in effect. */
  subscriptions(): Subscription[] {
    return [...this.#subscribers.values()].map(({ subscriber }) => subscriber.subscription);
  }

  /** Why publishing does not work: Components that cannot be used, or that are not known yet. */
  problems(): string[] {
    if (!this.#isConfigured) return ['the control plane has not sent the Components yet'];
    return [...this.#components.values()].flatMap(({ component, ready, problem }) => {
      const reason = problem ?? (ready === undefined ? 'it is being opened' : ready.problem());
      return reason === undefined ? [] : [`${component.name}: ${reason}`];
    });
  }

  /** Takes what the control plane says. Components that have not changed stay connected. */
  configure(config: MessagingConfig): void {
    this.#config = config;
    this.#isConfigured = true;
    this.#refusals.reset();
    for (const [name, opened] of this.#components) {
      const next = config.components.find((component) => component.name === name);
      if (next !== undefined && keyOf(next, this.appId) === opened.key) continue;
      this.#components.delete(name);
      void opened.driver.then((driver) => driver.close()).catch(() => {});
    }
    for (const component of config.components) if (!this.#components.has(component.name)) this.#components.set(component.name, this.#open(component));
    this.#updateSoon();
  }

  /** Takes what the application has declared. */
  declare(subscriptions: readonly Subscription[]): void {
    if (JSON.stringify(subscriptions) === JSON.stringify(this.#programmatic)) return;
    this.#programmatic = subscriptions;
    this.#updateSoon();
  }

  #open(component: PubSubComponent): Opened {
    const missing = Object.values(component.secretNames ?? {});
    const driver =
      missing.length > 0
        ? Promise.reject<BrokerDriver>(new MizzenError('missing-secret', `it waits for ${missing.join(', ')} from the control plane`))
        : makeDriver(component.type, component.metadata, {
            ...{ logger: this.#options.logger, meshTls: this.#options.meshTls },
            ...{ space: `${this.#options.namespace}/${component.name}`, appId: this.appId },
            secretFields: component.secretFields ?? [],
          });
    const opened: Opened = { component, key: keyOf(component, this.appId), driver, ready: undefined, problem: undefined };
    driver
      .then((made) => {
        opened.ready = made;
      })
      .catch((error: unknown) => {
        opened.problem = messageOf(error);
        this.#options.logger[missing.length > 0 ? 'info' : 'error'](`the component ${component.name} cannot be used: ${opened.problem}`);
      });
    return opened;
  }

  // ---- publishing ----

  /** Publishes; `done` is told when everything is stored, or what is wrong. The last argument is told for each message of many. */
  publish(publications: readonly Publication[], done: (problems: readonly (PublishProblem | undefined)[]) => void): void {
    const { pubsub, topic } = publications[0]!;
    const all = (problem: PublishProblem, result: string) => {
      this.#options.metrics.published(pubsub, topic, result, publications.length);
      done(publications.map(() => problem));
    };
    const opened = this.#components.get(pubsub);
    if (opened === undefined) {
      const known = [...this.#components.keys()].join(', ');
      return all(
        {
          status: 404,
          code: 'ERR_PUBSUB_NOT_FOUND',
          message: `there is no pubsub ${JSON.stringify(pubsub)}. ${known === '' ? 'This workload has no Component of a pubsub type.' : `There is: ${known}.`}`,
        },
        'unknown_pubsub',
      );
    }
    if (topic === '' || topic.length > maxTopicLength)
      return all({ status: 404, code: 'ERR_PUBSUB_TOPIC_EMPTY', message: `a topic has a name of 1 to ${maxTopicLength} characters` }, 'invalid');
    const nameProblem = opened.ready?.topicProblem?.(topic);
    if (nameProblem !== undefined) return all({ status: 400, code: 'ERR_PUBSUB_TOPIC_NAME', message: nameProblem }, 'invalid');
    const refusal = refusalOf(
      { operation: 'PUBLISH', pubsub, topic, appId: this.appId, principal: this.#options.identity },
      opened.component,
      this.#config.topicPolicies,
    );
    if (refusal !== undefined)
      return all({ status: 403, code: 'ERR_PUBSUB_FORBIDDEN', message: `topic ${topic} is not allowed for app ${this.appId}: ${refusal}` }, 'refused');
    const problems: (PublishProblem | undefined)[] = [];
    const messages: OutgoingMessage[] = [];
    const positions: number[] = [];
    for (const [i, publication] of publications.entries()) {
      try {
        messages.push(this.#messageOf(publication));
        positions.push(i);
      } catch (error) {
        // Whatever a message causes is its own problem: the others are published.
        this.#options.metrics.published(pubsub, topic, 'invalid', 1);
        problems[i] = { status: error instanceof InvalidEvent ? 400 : 500, code: 'ERR_PUBSUB_CLOUD_EVENTS_SER', message: messageOf(error) };
      }
    }
    if (messages.length === 0) return done(publications.map((_, i) => problems[i]));
    const finish = (results: readonly (string | undefined)[]) => {
      let stored = 0;
      for (const [at, problem] of results.entries())
        if (problem === undefined) stored++;
        else if (problem.startsWith(deniedPrefix))
          problems[positions[at]!] = {
            ...{ status: 403, code: 'ERR_PUBSUB_FORBIDDEN' },
            message: `topic ${topic} is not allowed for app ${this.appId}: ${problem.slice(deniedPrefix.length)}`,
          };
        else
          problems[positions[at]!] = {
            status: 500,
            code: 'ERR_PUBSUB_PUBLISH_MESSAGE',
            message: `error when publishing to topic ${topic} in pubsub ${pubsub}: ${problem}`,
          };
      if (stored > 0) this.#options.metrics.published(pubsub, topic, 'stored', stored);
      if (stored < results.length) this.#options.metrics.published(pubsub, topic, 'not_stored', results.length - stored);
      done(publications.map((_, i) => problems[i]));
    };
    const { ready } = opened;
    // The path that is walked most has no promise on it.
    if (ready instanceof EmbeddedDriver) return ready.publishAll(topic, messages, (problem) => finish(messages.map(() => problem)));
    if (opened.problem !== undefined) return finish(messages.map(() => opened.problem));
    const failed = (error: unknown): readonly string[] => {
      publishing.unexpected(error);
      return messages.map(() => messageOf(error));
    };
    publishing.start(
      () =>
        opened.driver
          .then((driver) => driver.publish(topic, messages))
          .catch(failed)
          .then(finish),
      () => finish(messages.map(() => internalError)),
    );
  }

  #messageOf({ pubsub, topic, contentType, body, metadata, traceparent, tracestate, json }: Publication): OutgoingMessage {
    const isRaw = metadata['rawPayload'] === 'true';
    const headers: Record<string, string> = {};
    let headerChars = traceparent.length + contentType.length;
    for (const [name, value] of Object.entries(metadata)) {
      if (!name.startsWith('x-') || name.startsWith('x-mizzen-')) continue;
      headers[name] = value;
      headerChars += name.length + value.length;
    }
    if (traceparent !== '') headers['traceparent'] = traceparent;
    if (isRaw && contentType !== '') headers['content-type'] = contentType;
    // Last: nobody else says who has published.
    headers[publisherHeader] = this.#options.identity;
    const content = isRaw
      ? json === undefined
        ? body
        : Buffer.from(json)
      : wrap({ contentType, body, source: this.appId, pubsub, topic, traceparent, tracestate, metadata, json });
    const key = metadata['partitionKey'] ?? metadata['key'] ?? metadata['orderingKey'] ?? '';
    checkSize('partitionKey', Buffer.byteLength(key), maxKeyBytes);
    if (headerChars > usualHeaderChars) checkSize('the headers of a message', Buffer.byteLength(JSON.stringify(headers)), maxHeaderBytes);
    checkSize('a message', content.length, maxMessageBytes);
    return {
      key,
      headers,
      body: content,
      delayMs: secondsOf(metadata['delayInSeconds'], 'delayInSeconds'),
      ttlMs: secondsOf(metadata['ttlInSeconds'], 'ttlInSeconds'),
    };
  }

  // ---- subscribing ----

  #updateSoon(): void {
    this.#updating = this.#updating
      .then(() => this.#update())
      .catch((error: unknown) => this.#options.logger.error(`subscriptions could not be brought in step: ${messageOf(error)}`));
  }

  async #update(): Promise<void> {
    // What the application says means nothing before it is known which components there are.
    if (this.#isClosed || !this.#isConfigured) return;
    const wanted = new Map<string, Subscription>();
    // A resource counts before what the application says, as in Dapr.
    for (const subscription of [...this.#programmatic, ...this.#config.subscriptions])
      wanted.set(`${subscription.pubsubname}/${subscription.topic}`, subscription);
    const { channel } = this.#options;
    this.#endStreams();
    for (const [name, { subscriber, key }] of this.#subscribers) {
      const subscription = wanted.get(name);
      if (subscription !== undefined && this.#subscriberKey(subscription) === key) continue;
      this.#subscribers.delete(name);
      // What it has handed to the application is finished first; access that was withdrawn ends at once.
      await subscriber.close(subscription !== undefined && this.#subscribeRefusal(subscription) === undefined ? maxDrainMs : 0);
    }
    if (channel === undefined) return;
    for (const [name, subscription] of wanted) {
      if (this.#subscribers.has(name)) continue;
      const canaries = this.#canariesOf(subscription);
      if (canaries.some(({ isCanary }) => isCanary)) continue;
      const subscriber = await this.subscribe(subscription, channel, (reason) => this.#refused(name, reason));
      if (typeof subscriber === 'string') this.#options.logger.error(`there is no subscription to ${name}: ${subscriber}`);
      else {
        this.#subscribers.set(name, { subscriber, key: this.#subscriberKey(subscription) });
        subscriber.open();
      }
    }
  }

  /** The broker has refused or closed a subscription: nothing of it reaches the application any more, and it is tried again later. */
  #refused(name: string, reason: string): void {
    const current = this.#subscribers.get(name);
    if (current === undefined || this.#isClosed) return;
    this.#subscribers.delete(name);
    closeSoon(current.subscriber);
    const { pubsubname, topic } = current.subscriber.subscription;
    this.#options.metrics.published(pubsubname, topic, 'subscription_refused', 1);
    const inMs = this.#refusals.nextMs();
    this.#options.logger.error(`there is no subscription to ${name}: ${reason}. It is tried again in ${(inMs / 1000).toFixed(1)} s.`);
    clearTimeout(this.#retry);
    this.#retry = this.#updateAfter(inMs);
  }

  #updateAfter(delayMs: number): NodeJS.Timeout {
    const again = () => {
      if (!this.#isClosed) this.#retry = this.#updateAfter(failedPauseMs);
    };
    return publishing.after(delayMs, () => this.#updateSoon(), again).unref();
  }

  /** Streams whose access or Component has changed end with a status that says which. */
  #endStreams(): void {
    for (const stream of [...this.#streams]) {
      const { subscription, key, end } = stream;
      const refusal = this.#subscribeRefusal(subscription);
      if (refusal === undefined && this.#subscriberKey(subscription) === key) continue;
      this.#streams.delete(stream);
      end(
        refusal === undefined
          ? { isDenied: false, message: `the configuration of pubsub ${subscription.pubsubname} has changed: subscribe again` }
          : { isDenied: true, message: `topic ${subscription.topic} is not allowed for app ${this.appId}: ${refusal}` },
      );
    }
  }

  /** As `subscribe`, for a stream: `onEnded` is called when access is withdrawn, or what the stream depends on has changed. */
  async subscribeStream(subscription: Subscription, channel: AppChannel, onEnded: (reason: StreamEnd) => void): Promise<{ close(): Promise<void> } | string> {
    const stream: Stream = { subscription, key: this.#subscriberKey(subscription), end: onEnded };
    const subscriber = await this.subscribe(subscription, channel, (reason) => {
      if (!this.#streams.delete(stream)) return;
      const isDenied = reason.startsWith(deniedPrefix);
      const message = isDenied ? `topic ${subscription.topic} is not allowed for app ${this.appId}: ${reason.slice(deniedPrefix.length)}` : reason;
      onEnded({ isDenied, message });
    });
    if (typeof subscriber === 'string') return subscriber;
    this.#streams.add(stream);
    subscriber.open();
    // The configuration may have changed meanwhile.
    this.#endStreams();
    return {
      close: async () => {
        this.#streams.delete(stream);
        await subscriber.close(0);
      },
    };
  }

  /** undefined: this workload may subscribe. A Component that is gone is not a refusal. */
  #subscribeRefusal({ pubsubname: pubsub, topic }: Subscription): string | undefined {
    const component = this.#components.get(pubsub)?.component;
    if (component === undefined) return undefined;
    return refusalOf({ operation: 'SUBSCRIBE', pubsub, topic, appId: this.appId, principal: this.#options.identity }, component, this.#config.topicPolicies);
  }

  /** Makes a subscriber, which the caller opens; what cannot be is said by a text. */
  async subscribe(subscription: Subscription, channel: AppChannel, onRefused: (reason: string) => void): Promise<Subscriber | string> {
    const { pubsubname: pubsub, topic } = subscription;
    const opened = this.#components.get(pubsub);
    if (opened === undefined) return `there is no pubsub ${JSON.stringify(pubsub)} for this workload`;
    const refusal = this.#subscribeRefusal(subscription);
    if (refusal !== undefined) {
      this.#options.metrics.published(pubsub, topic, 'subscription_refused', 1);
      return `topic ${topic} is not allowed for app ${this.appId}: ${refusal}`;
    }
    const loops = subscription.deadLetterTopic === topic;
    if (loops)
      this.#options.logger.error('a dead letter topic is the topic itself, which would loop: failed messages stay and are tried again', { pubsub, topic });
    try {
      return new Subscriber({
        subscription: loops ? { ...subscription, deadLetterTopic: '' } : subscription,
        group: subscription.metadata['consumerID'] || this.appId,
        driver: await opened.driver,
        channel,
        canaries: this.#canariesOf(subscription),
        canaryChannel: ({ cluster: name, authority }) => {
          const cluster = this.#options.findCluster(name);
          return cluster === undefined || cluster.healthyCount === 0 ? undefined : new HttpAppChannel(() => cluster, authority, this.#options.appFields);
        },
        resiliency: this.#config.resiliency[pubsub],
        deadLetter: (delivery, reason, done) => {
          // What the mesh publishes for a workload is published by that workload.
          const denied = refusalOf(
            { operation: 'PUBLISH', pubsub, topic: subscription.deadLetterTopic, appId: this.appId, principal: this.#options.identity },
            opened.component,
            this.#config.topicPolicies,
          );
          if (denied !== undefined) return done(`topic ${subscription.deadLetterTopic} is not allowed for app ${this.appId}: ${denied}`);
          const message: OutgoingMessage = {
            key: delivery.key,
            headers: {
              ...delivery.headers,
              [publisherHeader]: this.#options.identity,
              'x-mizzen-original-publisher': delivery.headers[publisherHeader] ?? '',
              'x-mizzen-dead-letter-reason': reason.slice(0, maxReasonChars),
              'x-mizzen-dead-letter-topic': topic,
              ...nextTrail(delivery.headers, topic),
            },
            body: delivery.body,
            delayMs: 0,
            ttlMs: 0,
          };
          publishing.start(
            () =>
              opened.driver
                .then((driver) => driver.publish(subscription.deadLetterTopic, [message]))
                .catch((error: unknown) => [messageOf(error)])
                .then(([problem]) => done(problem)),
            () => done(internalError),
          );
        },
        onRefused,
        metrics: this.#options.metrics,
        logger: this.#options.logger,
        random: this.#options.random ?? Math.random,
      });
    } catch (error) {
      return messageOf(error);
    }
  }

  #canariesOf({ pubsubname, topic }: Subscription) {
    return this.#config.canaries.filter((canary) => canary.pubsub === pubsubname && canary.topic === topic);
  }

  /** What of the configuration a subscriber was made of: when it changes, it is made anew. */
  #subscriberKey(subscription: Subscription): string {
    const { pubsubname } = subscription;
    return JSON.stringify([
      subscription,
      this.appId,
      this.#components.get(pubsubname)?.key,
      this.#config.resiliency[pubsubname],
      this.#canariesOf(subscription),
      this.#subscribeRefusal(subscription) !== undefined,
    ]);
  }

  async #measureLag(): Promise<void> {
    for (const [name, { ready, problem }] of this.#components) this.#options.metrics.brokerUp(name, problem === undefined && ready?.problem() === undefined);
    for (const { subscriber } of this.#subscribers.values()) {
      const lag = await subscriber.lag().catch(() => undefined);
      if (lag !== undefined) this.#options.metrics.lag(subscriber.subscription, subscriber.group, lag);
    }
  }

  /** Nothing more is taken; what the application is working on may end within `maxDrainMs`. */
  async close(): Promise<void> {
    this.#isClosed = true;
    clearInterval(this.#lagTimer);
    clearTimeout(this.#retry);
    await this.#updating;
    for (const { end } of this.#streams) end({ isDenied: false, message: 'the sidecar is shutting down' });
    this.#streams.clear();
    await Promise.all([...this.#subscribers.values()].map(({ subscriber }) => subscriber.close(maxDrainMs)));
    await Promise.all([...this.#components.values()].map(({ driver }) => driver.then((made) => made.close()).catch(() => {})));
  }
}

/** A subscriber that is refused; what is left of it ends by itself. */
const closeSoon = (subscriber: Subscriber): void => void subscriber.close(0).catch((error: unknown) => publishing.unexpected(error));

function keyOf({ name, type, metadata, secretNames = {} }: PubSubComponent, appId: string): string {
  return JSON.stringify([name, type, metadata, Object.keys(secretNames), appId]);
}

function checkSize(what: string, bytes: number, max: number): void {
  if (bytes > max) throw new InvalidEvent(`${what} may have ${max} bytes, not ${bytes}`);
}

function secondsOf(text: string | undefined, name: string): number {
  if (text === undefined) return 0;
  if (!/^\d{1,9}$/.test(text)) throw new InvalidEvent(`${name} must be a whole number of seconds, not ${JSON.stringify(text.slice(0, 40))}`);
  return Number(text) * 1000;
}
