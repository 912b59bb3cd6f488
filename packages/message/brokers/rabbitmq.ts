import { randomUUID } from 'node:crypto';
import { Backoff, errorBoundary, type Logger, messageOf, verifyServerCertificate, vetLibraryClients } from '@mizzen/common';
import { type Channel, type ChannelModel, type ConfirmChannel, type ConsumeMessage, connect, type Message } from 'amqplib';
import { type BrokerDriver, type BrokerSubscription, type Delivery, type OutgoingMessage, publishTimeoutMs, type SubscriptionRequest } from './driver.ts';
import { failedPauseMs, HeldMessages } from './held-messages.ts';
import { readWireHeaders, wireHeaders } from './message-headers.ts';
import { within } from './within.ts';

const boundary = errorBoundary('driver.rabbitmq');

export interface RabbitDriverOptions {
  /** amqp://user:password@host:port/vhost */
  readonly url: string;
  readonly logger: Logger;
  /** Takes the secrets of the component out of a text (./hide-secrets.ts). */
  readonly hide?: (text: string) => string;
}

/**
 * RabbitMQ: a durable fanout exchange for each topic, a durable queue for each group. Messages are kept for groups that have been there: what is
 * published before the first one has come is nobody's, as RabbitMQ has it.
 */
export class RabbitDriver implements BrokerDriver {
  readonly #options: RabbitDriverOptions;
  readonly #backoff: Backoff;
  readonly #subscriptions: Set<() => Promise<void>>;
  readonly #exchanges: Set<string>;
  /** Topics that have had queues. */
  readonly #routed: Set<string>;
  /** Ids of messages that went to no queue and are not confirmed yet. */
  readonly #returned: Set<string>;
  #connectedAt: number;
  /** The connection in use; undefined: there is none. */
  #current: { readonly model: ChannelModel; readonly channel: ConfirmChannel } | undefined;
  readonly #reopening: Set<() => Promise<void>>;
  #connecting: Promise<{ readonly model: ChannelModel; readonly channel: ConfirmChannel }> | undefined;
  #problem: string | undefined;
  #isClosed: boolean;

  constructor(options: RabbitDriverOptions) {
    this.#options = options;
    this.#backoff = new Backoff(100, 2_000);
    this.#subscriptions = new Set();
    this.#exchanges = new Set();
    this.#routed = new Set();
    this.#returned = new Set();
    this.#connectedAt = 0;
    this.#current = undefined;
    this.#reopening = new Set();
    this.#connecting = undefined;
    this.#problem = 'not connected yet';
    this.#isClosed = false;
    vetLibraryClients();
    this.#connected().catch(() => {});
  }

  problem(): string | undefined {
    return this.#problem;
  }

  async publish(topic: string, messages: readonly OutgoingMessage[]): Promise<readonly (string | undefined)[]> {
    let channel: ConfirmChannel;
    try {
      channel = (await within(this.#connected(), publishTimeoutMs)).channel;
      await this.#exchange(channel, topic);
    } catch (error) {
      return messages.map(() => `the message was not stored: ${messageOf(error)}`);
    }
    const now = Date.now();
    return Promise.all(
      messages.map(
        (message) =>
          new Promise<string | undefined>((resolve) => {
            const failed = (error: unknown) => resolve(`the message was not stored: ${messageOf(error)}`);
            // A connection that breaks confirms nothing more.
            const timer = boundary.after(publishTimeoutMs, () => failed(this.#problem ?? `not confirmed within ${publishTimeoutMs} ms`));
            const messageId = randomUUID();
            const confirmed = (error: unknown) => {
              clearTimeout(timer);
              if (error !== null && error !== undefined) failed(error);
              else if (this.#isNobodys(topic, messageId)) failed('no queue is bound to the topic (any more, or again)');
              else resolve(undefined);
            };
            try {
              channel.publish(
                exchangeOf(topic),
                '',
                message.body,
                { persistent: true, mandatory: true, messageId, headers: wireHeaders(message, now) },
                boundary.wrap(confirmed, () => failed('internal error')),
              );
            } catch (error) {
              clearTimeout(timer);
              failed(error);
            }
          }),
      ),
    );
  }

  async subscribe(request: SubscriptionRequest, deliver: (message: Delivery) => void): Promise<BrokerSubscription> {
    const { topic, group, maxInFlight } = request;
    const held = new HeldMessages();
    const attempts = new Map<string, number>();
    let isClosed = false;
    let current: Channel | undefined;
    const open = async (): Promise<void> => {
      if (isClosed) return;
      const { model } = await this.#connected();
      const opening = openOn(model);
      try {
        await within(opening, stepMs);
      } catch (error) {
        // What opens after all would take messages that go nowhere.
        opening.then((channel) => channel.close()).catch(() => {});
        throw error;
      }
    };
    const openOn = async (model: ChannelModel) => {
      // An error of ours ends the channel, and the messages that it held are delivered again.
      const channel: Channel = boundary.own(await model.createChannel(), () => closeSoon(channel));
      await channel.assertExchange(exchangeOf(topic), 'fanout', { durable: true });
      const queue = queueOf(topic, group);
      await channel.assertQueue(queue, { durable: true });
      await channel.bindQueue(queue, exchangeOf(topic), '');
      await channel.prefetch(maxInFlight);
      let isOpen = true;
      channel.on('close', () => {
        isOpen = false;
        // The channel alone: RabbitMQ closes it for an error, and when its queue is deleted. With its connection, `#lost` opens it.
        if (current === channel) this.#openAgain(open);
      });
      await channel.consume(queue, (message) => {
        if (message === null) return closeSoon(channel);
        // A message that cannot be handled comes again later; those behind it go on.
        const again = () => held.hold(failedPauseMs, () => isOpen && channel.nack(message, false, true));
        boundary.run(() => this.#take(message, channel, () => isOpen, held, attempts, deliver)) || boundary.run(again);
      });
      current = channel;
      if (isClosed) closeSoon(channel);
      return channel;
    };
    await open();
    this.#subscriptions.add(open);
    return {
      close: async () => {
        isClosed = true;
        held.close();
        this.#subscriptions.delete(open);
        const channel = current;
        current = undefined;
        await within(channel?.close() ?? Promise.resolve(), stepMs).catch(() => {});
      },
    };
  }

  async lag(topic: string, group: string): Promise<number | undefined> {
    const { model } = await within(this.#connected(), stepMs);
    const channel: Channel = boundary.own(await within(model.createChannel(), stepMs), () => closeSoon(channel));
    try {
      // What consumers have and have not settled is not counted: RabbitMQ tells it by its management API only.
      return (await channel.checkQueue(queueOf(topic, group))).messageCount;
    } catch {
      return undefined;
    } finally {
      await channel.close().catch(() => {});
    }
  }

  async close(): Promise<void> {
    this.#isClosed = true;
    const connection = await this.#connecting?.catch(() => undefined);
    if (connection !== undefined) await within(connection.model.close(), stepMs).catch(() => {});
  }

  #take(
    message: ConsumeMessage,
    channel: { ack(message: ConsumeMessage): void; nack(message: ConsumeMessage, all: boolean, requeue: boolean): void },
    isOpen: () => boolean,
    held: HeldMessages,
    attempts: Map<string, number>,
    deliver: (message: Delivery) => void,
  ): void {
    const now = Date.now();
    const wire: Record<string, string> = {};
    for (const [name, value] of Object.entries((message.properties.headers ?? {}) as Record<string, unknown>))
      if (typeof value === 'string') wire[name] = value;
    const { headers, key, publishedAtMs, deliverAtMs, isExpired } = readWireHeaders(wire, now);
    let isSettled = false;
    const settle = (then: () => void) => {
      // Over another connection RabbitMQ gives it out anew anyway.
      if (isSettled || !isOpen()) return;
      isSettled = true;
      then();
    };
    const ack = () =>
      settle(() => {
        if (typeof message.properties.messageId === 'string') attempts.delete(message.properties.messageId);
        channel.ack(message);
      });
    if (isExpired) return ack();
    // RabbitMQ says that a message comes again, not how often.
    const { messageId } = message.properties as { readonly messageId?: string };
    const known = messageId === undefined ? 0 : (attempts.get(messageId) ?? 0);
    const attempt = Math.max(known, message.fields.redelivered ? 1 : 0) + 1;
    if (messageId !== undefined) {
      if (attempts.size >= maxAttemptsKept) attempts.clear();
      attempts.set(messageId, attempt);
    }
    held.hold(deliverAtMs - now, () => {
      if (!isOpen()) return;
      deliver({
        id: `${message.fields.consumerTag}-${message.fields.deliveryTag}`,
        key,
        headers,
        body: message.content,
        attempt,
        publishedAtMs,
        ack,
        nack: (delayMs) => held.hold(delayMs, () => settle(() => channel.nack(message, false, true))),
      });
    });
  }

  async #exchange(channel: ConfirmChannel, topic: string): Promise<void> {
    if (this.#exchanges.has(topic)) return;
    await channel.assertExchange(exchangeOf(topic), 'fanout', { durable: true });
    this.#exchanges.add(topic);
  }

  /**
   * Whether a message that is confirmed went to no queue, though its topic has some. RabbitMQ killed within seconds of a group's first visit comes back with the queue
   * and without its binding, until the group binds it anew.
   */
  #isNobodys(topic: string, messageId: string): boolean {
    if (!this.#returned.delete(messageId)) {
      this.#routed.add(topic);
      return false;
    }
    if (Date.now() - this.#connectedAt < bindAgainMs) return this.#routed.has(topic);
    this.#routed.delete(topic);
    return false;
  }

  #connected() {
    this.#connecting ??= this.#connect();
    return this.#connecting;
  }

  async #connect(): Promise<{ model: ChannelModel; channel: ConfirmChannel }> {
    const { url, logger, hide = String } = this.#options;
    const shown = hide(url);
    for (;;) {
      if (this.#isClosed) throw new Error('the driver is closed');
      // A server that dies in the middle of a step never ends it.
      const opening = connect(url, { timeout: stepMs, checkServerIdentity: verifyServerCertificate });
      try {
        const model: ChannelModel = boundary.own(await within(opening, stepMs), () => closeSoon(model));
        const channel: ConfirmChannel = boundary.own(await within(model.createConfirmChannel(), stepMs), () => closeSoon(model));
        channel.on('return', ({ properties }: Message) => this.#returned.add(String(properties.messageId)));
        // RabbitMQ closes a channel for an error, such as an exchange that was deleted: publishing goes on over a new connection.
        channel.on('close', () => closeSoon(model));
        const current = { model, channel };
        const lost = () => this.#current === current && this.#lost(shown);
        model.on('close', lost);
        this.#current = current;
        this.#exchanges.clear();
        this.#returned.clear();
        this.#connectedAt = Date.now();
        this.#problem = undefined;
        this.#backoff.reset();
        return current;
      } catch (error) {
        opening.then(closeSoon).catch(() => {});
        const problem = `RabbitMQ at ${shown} cannot be used: ${hide(messageOf(error))}`;
        if (this.#problem !== problem) logger.warn(problem);
        this.#problem = problem;
        await new Promise((resolve) => setTimeout(resolve, this.#backoff.nextMs()));
      }
    }
  }

  #lost(shown: string): void {
    this.#current = undefined;
    this.#connecting = undefined;
    this.#problem = `RabbitMQ at ${shown} is away`;
    if (this.#isClosed) return;
    this.#options.logger.warn(`${this.#problem}. Trying again.`);
    for (const open of this.#subscriptions) this.#openAgain(open);
    this.#connected().catch(() => {});
  }

  /** Opens a subscription that was lost, also after an exception; one attempt at a time. */
  #openAgain(open: () => Promise<void>): void {
    if (this.#reopening.has(open)) return;
    this.#reopening.add(open);
    const again = async (): Promise<void> => {
      while (!this.#isClosed && this.#subscriptions.has(open)) {
        try {
          await open();
          break;
        } catch {
          await new Promise((resolve) => setTimeout(resolve, this.#backoff.nextMs()));
        }
      }
      this.#reopening.delete(open);
    };
    boundary.start(again, () => {
      this.#reopening.delete(open);
      boundary.after(failedPauseMs, () => this.#openAgain(open));
    });
  }
}

const maxAttemptsKept = 10_000;
/** After a reconnect, for groups to bind their queues again. */
const bindAgainMs = 30_000;
/** For one step of setting something up. */
const stepMs = 5_000;
const exchangeOf = (topic: string) => `mizzen.${topic}`;
/** The last dot separates topic and group: no two pairs of them share a queue, and with it their messages. */
export const queueOf = (topic: string, group: string) => `mizzen.${topic}.${group.replace(/[.%]/g, encodeDot)}`;
const encodeDot = (character: string) => (character === '.' ? '%2E' : '%25');

/** Ends a channel or connection, which may have ended already. What it has not settled is delivered again. */
const closeSoon = (owner: { close(): Promise<void> }): void => void owner.close().catch(() => {});
