import net from 'node:net';
import tls from 'node:tls';
import { Backoff, errorBoundary, type Logger, messageOf, vetServer } from '@mizzen/common';
import { FrameSocket } from '../broker/frame-socket.ts';
import { type Cursor, deniedPrefix, FrameBuilder, frameKind, protocolVersion, textBytes } from '../broker/frames.ts';
import { decodeRecord, maxRecordBytes, recordBytes, writeRecord } from '../log/record.ts';
import { fullNameOf, topicNameProblem, topicPattern } from '../policy/topic-names.ts';
import {
  type BrokerDriver,
  type BrokerSubscription,
  type Delivery,
  isExpired,
  type OutgoingMessage,
  publishTimeoutMs,
  type SubscriptionRequest,
  ttlHeader,
} from './driver.ts';
import { parseHeaders } from './message-headers.ts';

const boundary = errorBoundary('driver.embedded');

export interface EmbeddedDriverOptions {
  readonly host: string;
  readonly port: number;
  readonly logger: Logger;
  /** Takes the secrets of the component out of a text (./hide-secrets.ts). */
  readonly hide?: (text: string) => string;
  /** Asked at each connection; undefined: plain TCP. Throws while there is no certificate yet. */
  readonly tls?: (() => tls.ConnectionOptions) | undefined;
  /** Namespace and name of the Component, whose topics are its own; absent: names of topics go to the broker as they are. */
  readonly space?: string | undefined;
  /** Of the application that this client is for. */
  readonly appId?: string | undefined;
}

interface Publishing {
  readonly frame: Buffer;
  readonly done: (problem: string | undefined) => void;
  readonly deadline: number;
  /** It was refused and is sent once more. */
  isSecond: boolean;
}

interface Subscribed {
  readonly id: number;
  readonly request: SubscriptionRequest;
  readonly deliver: (message: Delivery) => void;
  readonly onEnded: (reason: string) => void;
  /** Of the first attempt to subscribe. */
  settle: ((problem: string | undefined) => void) | undefined;
  /** It was refused and is sent once more. */
  isSecond: boolean;
}

const maxUnanswered = 50_000;
/** Bodies that travel in one frame; more go in several. */
const maxBatchBytes = maxRecordBytes / 2;
const failedPauseMs = 30_000;
const sweepMs = 250;
const connectTimeoutMs = 3_000;
/** What the broker refuses and this sidecar allows may be a policy that reaches the broker a moment later: it is sent again after so long. */
const deniedPauseMs = 250;

/**
 * The client of the embedded broker. One connection for everything; what is published in one turn of the event loop travels, is stored and is answered
 * together. When the connection breaks, what was not answered is sent again: the broker may then have it twice, which at-least-once allows.
 */
export class EmbeddedDriver implements BrokerDriver {
  readonly #options: EmbeddedDriverOptions;
  readonly #space: string;
  readonly #backoff: Backoff;
  readonly #publishing: Map<number, Publishing>;
  readonly #asking: Map<number, { readonly done: (value: unknown) => void; readonly fail: (problem: string) => void }>;
  readonly #subscriptions: Map<number, Subscribed>;
  readonly #sweeper: NodeJS.Timeout;
  #socket: net.Socket | undefined;
  #frames: FrameSocket | undefined;
  #isReady: boolean;
  #problem: string | undefined;
  #nextId: number;
  #isClosed: boolean;
  #reconnect: NodeJS.Timeout | undefined;

  constructor(options: EmbeddedDriverOptions) {
    this.#options = options;
    this.#space = options.space ?? '';
    this.#backoff = new Backoff(20, 1_000);
    this.#publishing = new Map();
    this.#asking = new Map();
    this.#subscriptions = new Map();
    this.#socket = undefined;
    this.#frames = undefined;
    this.#isReady = false;
    this.#problem = 'not connected yet';
    this.#nextId = 1;
    this.#isClosed = false;
    this.#reconnect = undefined;
    this.#sweeper = boundary.every(sweepMs, () => this.#sweep());
    this.#connect();
  }

  topicProblem(topic: string): string | undefined {
    return topicPattern.test(topic) ? undefined : topicNameProblem(topic);
  }

  problem(): string | undefined {
    return this.#isReady ? undefined : this.#problem;
  }

  async publish(topic: string, messages: readonly OutgoingMessage[]): Promise<readonly (string | undefined)[]> {
    const problem = await new Promise<string | undefined>((resolve) => this.publishAll(topic, messages, resolve));
    return messages.map(() => problem);
  }

  /** The same without a promise, for the path that is walked most. */
  publishAll(topic: string, messages: readonly OutgoingMessage[], done: (problem: string | undefined) => void): void {
    if (this.#isClosed) return done('the broker is no longer used');
    if (this.#publishing.size >= maxUnanswered) return done('too many messages wait for the broker');
    const problem = this.topicProblem(topic);
    if (problem !== undefined) return done(problem);
    const half = messages.length >> 1;
    // A frame has a largest size: what is too much for one travels in two.
    if (half > 0 && messages.reduce((sum, { body }) => sum + body.length, 0) > maxBatchBytes) {
      let first: { readonly problem: string | undefined } | undefined;
      const both = (result: string | undefined) => {
        if (first === undefined) first = { problem: result };
        else done(first.problem ?? result);
      };
      this.publishAll(topic, messages.slice(0, half), both);
      return this.publishAll(topic, messages.slice(half), both);
    }
    const now = Date.now();
    const records = messages.map(({ key, headers, body, delayMs, ttlMs }) => ({
      key,
      headers: JSON.stringify(ttlMs > 0 ? { ...headers, [ttlHeader]: String(now + ttlMs) } : headers),
      body,
      deliverAtMs: delayMs > 0 ? now + delayMs : 0,
    }));
    const sizes = records.map(recordBytes);
    const tooLong = records.find(
      ({ key, headers }, i) => Buffer.byteLength(key) > 0xffff || Buffer.byteLength(headers) > maxRecordBytes || sizes[i]! > maxRecordBytes,
    );
    if (tooLong !== undefined) return done(`a message with its key and headers may have ${maxRecordBytes} bytes, its key 65535`);
    const bytes = sizes.reduce((sum, size) => sum + size, 0);
    const id = this.#nextId++ >>> 0;
    const name = fullNameOf(this.#space, topic);
    const fixed = 4 + textBytes(name) + 4;
    // One piece of memory: it is written once, and sent as it is.
    const frame = Buffer.allocUnsafe(5 + fixed + bytes);
    new FrameBuilder(frameKind.publish, fixed, bytes, frame).u32(id).text(name).u32(records.length);
    let at = 5 + fixed;
    for (const [i, record] of records.entries()) {
      writeRecord(record, frame.subarray(at, at + sizes[i]!));
      at += sizes[i]!;
    }
    const publishing: Publishing = { frame, done, deadline: now + publishTimeoutMs, isSecond: false };
    this.#publishing.set(id, publishing);
    if (this.#isReady) this.#frames!.send(frame);
  }

  async subscribe(
    request: SubscriptionRequest,
    deliver: (message: Delivery) => void,
    onEnded: (reason: string) => void = () => {},
  ): Promise<BrokerSubscription> {
    const nameProblem = this.topicProblem(request.topic) ?? (/^.{1,200}$/s.test(request.group) ? undefined : 'a group has a name of 1 to 200 characters');
    if (nameProblem !== undefined) throw new Error(nameProblem);
    const id = this.#nextId++ >>> 0;
    const problem = await new Promise<string | undefined>((resolve) => {
      const subscribed: Subscribed = { id, request, deliver, onEnded, settle: resolve, isSecond: false };
      this.#subscriptions.set(id, subscribed);
      if (this.#isReady) this.#sendSubscribe(subscribed);
    });
    if (problem !== undefined) {
      this.#subscriptions.delete(id);
      throw new Error(problem);
    }
    return {
      retire: () => {
        if (this.#isReady) this.#frames!.send(new FrameBuilder(frameKind.retire, 4).u32(id).done());
      },
      close: async () => {
        if (!this.#subscriptions.delete(id)) return;
        if (this.#isReady) this.#frames!.send(new FrameBuilder(frameKind.unsubscribe, 4).u32(id).done());
      },
    };
  }

  async lag(topic: string, group: string): Promise<number | undefined> {
    const { topics } = (await this.ask({ what: 'stats' })) as { topics: { topic: string; groups: { group: string; lag: number }[] }[] };
    const name = fullNameOf(this.#space, topic);
    return topics.find((candidate) => candidate.topic === name)?.groups.find((candidate) => candidate.group === group)?.lag;
  }

  /** Asks the broker something (broker-server.ts); rejects with its reason. */
  ask(question: object): Promise<unknown> {
    return new Promise((resolve, reject) => {
      if (!this.#isReady) return reject(new Error(this.#problem));
      const id = this.#nextId++ >>> 0;
      const text = JSON.stringify(question);
      this.#asking.set(id, { done: resolve, fail: (problem) => reject(new Error(problem)) });
      this.#frames!.send(new FrameBuilder(frameKind.ask, 4 + textBytes(text)).u32(id).text(text).done());
    });
  }

  async close(): Promise<void> {
    if (this.#isClosed) return;
    this.#isClosed = true;
    clearInterval(this.#sweeper);
    clearTimeout(this.#reconnect);
    for (const { done } of this.#publishing.values()) done('the sidecar is shutting down');
    this.#publishing.clear();
    this.#frames?.close();
  }

  #connect(): void {
    if (this.#isClosed) return;
    const { host, port } = this.#options;
    let socket: net.Socket;
    try {
      const own = this.#options.tls?.();
      socket = boundary.own(own === undefined ? net.connect({ host, port }) : vetServer(tls.connect({ host, port, ...own })));
    } catch (error) {
      return this.#lost(messageOf(error));
    }
    this.#socket = socket;
    socket.setTimeout(connectTimeoutMs, () => socket.destroy(new Error(`no answer within ${connectTimeoutMs} ms`)));
    const frames = new FrameSocket(
      socket,
      (kind, content) => this.#onFrame(kind, content),
      (reason) => {
        if (this.#socket === socket) this.#lost(reason);
      },
    );
    this.#frames = frames;
    const { appId = '' } = this.#options;
    frames.send(new FrameBuilder(frameKind.hello, 1 + textBytes(appId)).u8(protocolVersion).text(appId).done());
  }

  #lost(reason: string): void {
    const wasReady = this.#isReady;
    this.#isReady = false;
    this.#socket = undefined;
    this.#frames = undefined;
    const { host, port, hide = String } = this.#options;
    this.#problem = hide(`the broker at ${host}:${port} cannot be reached: ${reason}`);
    for (const { fail } of this.#asking.values()) fail(this.#problem);
    this.#asking.clear();
    if (this.#isClosed) return;
    if (wasReady) this.#options.logger.warn(`${this.#problem}. Trying again; what was not confirmed is sent again.`);
    this.#reconnect = boundary.after(
      this.#backoff.nextMs(),
      () => this.#connect(),
      () => this.#lost('internal error'),
    );
  }

  #onFrame(kind: number, content: Cursor): void {
    switch (kind) {
      case frameKind.welcome:
        if (content.u8() < 2 && this.#space !== '') return void this.#socket?.destroy(new Error('it is of an earlier version: upgrade the broker first'));
        this.#socket?.setTimeout(0);
        this.#isReady = true;
        this.#problem = undefined;
        this.#backoff.reset();
        for (const subscribed of this.#subscriptions.values()) this.#sendSubscribe(subscribed);
        for (const { frame } of this.#publishing.values()) this.#frames!.send(frame);
        return;
      case frameKind.published: {
        const id = content.u32();
        const problem = content.text();
        const publishing = this.#publishing.get(id);
        if (publishing === undefined) return;
        if (problem.startsWith(deniedPrefix) && !publishing.isSecond) {
          publishing.isSecond = true;
          return void boundary.after(deniedPauseMs, () => {
            if (this.#isReady && this.#publishing.has(id)) this.#frames!.send(publishing.frame);
          });
        }
        this.#publishing.delete(id);
        return publishing.done(problem === '' ? undefined : problem);
      }
      case frameKind.subscribed: {
        const subscribed = this.#subscriptions.get(content.u32());
        const problem = content.text();
        if (subscribed !== undefined && problem.startsWith(deniedPrefix) && !subscribed.isSecond) {
          subscribed.isSecond = true;
          boundary.after(deniedPauseMs, () => {
            if (this.#isReady && this.#subscriptions.get(subscribed.id) === subscribed) this.#sendSubscribe(subscribed);
          });
          return;
        }
        if (subscribed !== undefined) subscribed.isSecond = false;
        if (subscribed?.settle !== undefined) {
          subscribed.settle(problem === '' ? undefined : problem);
          subscribed.settle = undefined;
        } else if (problem !== '' && subscribed !== undefined) this.#ended(subscribed, problem);
        return;
      }
      case frameKind.ended: {
        const subscribed = this.#subscriptions.get(content.u32());
        if (subscribed !== undefined) this.#ended(subscribed, content.text());
        return;
      }
      case frameKind.deliver:
        return this.#onDelivery(content);
      case frameKind.answer: {
        const asking = this.#asking.get(content.u32());
        const problem = content.text();
        const length = content.u32();
        if (problem !== '') asking?.fail(problem);
        else asking?.done(JSON.parse(content.rest().toString('utf8', 0, length)));
      }
    }
  }

  /** The broker delivers nothing more. */
  #ended(subscribed: Subscribed, reason: string): void {
    const { id, request, onEnded } = subscribed;
    this.#subscriptions.delete(id);
    this.#options.logger.warn(`the broker has closed a subscription: ${reason}`, { topic: request.topic, group: request.group });
    onEnded(reason);
  }

  #onDelivery(content: Cursor): void {
    const id = content.u32();
    const partition = content.u16();
    const attempt = content.u32();
    const subscribed = this.#subscriptions.get(id);
    if (subscribed === undefined) return;
    // A message may be held for long: it shall not hold what came with it.
    const { offset, timestampMs, key, headers: text, body } = decodeRecord(Buffer.from(content.rest()));
    const frames = this.#frames;
    const settle = (delayMs: number) => {
      // Over another connection the broker gives it out anew anyway.
      if (frames !== this.#frames) return;
      frames?.send(new FrameBuilder(frameKind.settle, 4 + 2 + 8 + 8).u32(id).u16(partition).f64(offset).f64(delayMs).done());
    };
    try {
      const headers = parseHeaders(text);
      if (isExpired(headers, Date.now())) return settle(-1);
      subscribed.deliver({
        id: `${partition}-${offset}`,
        key,
        headers,
        body,
        attempt,
        publishedAtMs: timestampMs,
        ack: () => settle(-1),
        nack: (delayMs) => settle(Math.max(0, delayMs)),
      });
    } catch (error) {
      // It ends alone: another attempt comes later, and the connection goes on.
      this.#options.logger.error(`a message cannot be delivered: ${messageOf(error)}`, { topic: subscribed.request.topic, partition, offset });
      settle(failedPauseMs);
    }
  }

  #sendSubscribe({ id, request: { topic: name, group, maxInFlight, from } }: Subscribed): void {
    const topic = fullNameOf(this.#space, name);
    this.#frames!.send(
      new FrameBuilder(frameKind.subscribe, 4 + textBytes(topic) + textBytes(group) + 4 + textBytes(from))
        .u32(id)
        .text(topic)
        .text(group)
        .u32(maxInFlight)
        .text(from)
        .done(),
    );
  }

  /** Publishers are not left waiting for a broker that is away. */
  #sweep(): void {
    if (this.#publishing.size === 0) return;
    const now = Date.now();
    for (const [id, { deadline, done }] of this.#publishing) {
      if (deadline > now) break;
      this.#publishing.delete(id);
      done(this.#problem ?? `the broker has not confirmed within ${publishTimeoutMs} ms`);
    }
  }
}
