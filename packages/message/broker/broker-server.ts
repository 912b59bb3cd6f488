import { once } from 'node:events';
import net from 'node:net';
import tls from 'node:tls';
import { errorBoundary, type Logger, MizzenError, messageOf, tlsDefaults } from '@mizzen/common';
import { ConnectionGuard, maxHandshakeMs } from '@mizzen/common/connection-guard';
import type { PeerValidity } from '@mizzen/common/peer-validity';
import { ServerConnections } from '@mizzen/common/server-connections';
import { recordLengthAt, recordOverheadBytes } from '../log/record.ts';
import type { BrokerAccess, BrokerPeer, TopicOperation } from '../policy/broker-access.ts';
import { maxFullNameLength } from '../policy/topic-names.ts';
import type { Broker, GroupCaller, Membership } from './broker.ts';
import type { GroupMember } from './consumer-group.ts';
import { FrameSocket } from './frame-socket.ts';
import { type Cursor, deniedPrefix, FrameBuilder, frameKind, protocolVersion, shortText, textBytes } from './frames.ts';

const boundary = errorBoundary('broker.connection');

export interface BrokerServerOptions {
  readonly broker: Broker;
  readonly host: string;
  readonly port: number;
  readonly logger: Logger;
  /** Mutual TLS; undefined: plain TCP, for loopback. */
  readonly tls?: () => tls.TlsOptions;
  /** How peers are authorized; absent: the broker has no identity, and every peer may do everything. */
  readonly authorization?: BrokerAuthorization | undefined;
}

/** What a broker of a mesh knows of its peers. Everything in it is required: there is no identity without enforcement. */
export interface BrokerAuthorization {
  /** The identity that the peer's certificate proves; undefined: none, and the peer is refused. */
  identityOf(socket: tls.TLSSocket): string | undefined;
  readonly validity: PeerValidity;
  readonly access: BrokerAccess;
  /** Whether an identity may do everything. */
  isOperator(identity: string): boolean;
}

const maxCredit = 10_000;
/** A message that is given back comes again after this time at the latest. */
const maxDelayMs = 7 * 24 * 3600 * 1000;
const maxSubscriptions = 1_000;
/** A member that has not taken so much is sent nothing more for now. */
const maxBacklogBytes = 4 * 1024 * 1024;
/** Connections whose certificate has expired are closed this often. */
const sweepMs = 30_000;
/** A workload may connect before the control plane has told the broker of its app id. */
const maxAppWaitMs = 2_000;
/** Answers about topics that a connection keeps until the policies change. */
const maxKeptAnswers = 1_000;
export const publisherHeader = 'x-mizzen-publisher';

/** Serves a broker to sidecars, by the protocol of ./frames.ts. */
export class BrokerServer {
  readonly #options: BrokerServerOptions;
  readonly #server: net.Server;
  readonly #connections: ServerConnections;
  readonly #guard: ConnectionGuard;
  readonly #sweep: NodeJS.Timeout | undefined;
  readonly #stopFollowing: (() => void) | undefined;
  #adopting: Promise<void>;

  constructor(options: BrokerServerOptions) {
    this.#options = options;
    this.#adopting = Promise.resolve();
    const { authorization } = options;
    const onSocket = (socket: net.Socket) => {
      boundary.own(socket);
      try {
        boundary.enter();
        const identity = authorization?.identityOf(socket as tls.TLSSocket);
        const problem =
          authorization === undefined
            ? undefined
            : identity === undefined
              ? 'the certificate proves no identity of the mesh'
              : authorization.validity.follow(socket as tls.TLSSocket);
        if (problem !== undefined) {
          options.logger.warn(`a client of the broker was refused: ${problem}`, { peer: socket.remoteAddress, identity });
          return void socket.destroy();
        }
        if (this.#guard.prove(socket, identity ?? 'plain')) new Connection(socket, options, identity);
      } catch (error) {
        boundary.caught(error);
        socket.destroy();
      }
    };
    this.#server = boundary.own(
      options.tls === undefined
        ? net.createServer(onSocket)
        : tls.createServer({ ...tlsDefaults, ...options.tls(), requestCert: true, rejectUnauthorized: true, handshakeTimeout: maxHandshakeMs }, onSocket),
    );
    this.#guard = new ConnectionGuard(this.#server);
    this.#connections = new ServerConnections(this.#server);
    this.#sweep = authorization === undefined ? undefined : boundary.every(sweepMs, () => authorization.validity.endInvalid()).unref();
    this.#stopFollowing = authorization?.access.onChange(() => this.#adopt(authorization.access));
    if (authorization?.access.isKnown) this.#adopt(authorization.access);
    this.#server.on('tlsClientError', (error: Error) => options.logger.debug('a client of the broker was refused', { error: error.message }));
  }

  get port(): number {
    return (this.#server.address() as net.AddressInfo).port;
  }

  /** Takes a new certificate for the handshakes from now on. */
  renewTls(): void {
    if (this.#server instanceof tls.Server && this.#options.tls !== undefined) this.#server.setSecureContext(this.#options.tls());
  }

  /** Gives topics of earlier versions to the only Component that there is. Where there are several, the operator decides. */
  #adopt(access: BrokerAccess): void {
    const adopt = async () => {
      const { broker, logger } = this.#options;
      const { spaces } = access;
      if (spaces.length === 0) return;
      for (const topic of broker.unadopted()) {
        const problem = spaces.length > 1 ? `it may be of ${spaces.join(', ')}` : await broker.adopt(topic, spaces[0]!).then(() => undefined, messageOf);
        if (problem !== undefined)
          logger.error(`a topic of an earlier version waits for its Component: ${problem}; run \`mizzen messages adopt ${topic} NAMESPACE/COMPONENT\``, {
            topic,
          });
      }
    };
    this.#adopting = this.#adopting.then(adopt).catch((error: unknown) => boundary.caught(error));
  }

  async listen(): Promise<void> {
    await this.#adopting;
    this.#server.listen(this.#options.port, this.#options.host);
    await once(this.#server, 'listening');
  }

  async close(): Promise<void> {
    clearInterval(this.#sweep);
    this.#stopFollowing?.();
    await this.#connections.close();
    await this.#adopting;
  }
}

interface OpenSubscription {
  readonly member: SocketMember;
  readonly membership: Membership;
  readonly topic: string;
  readonly group: string;
}

class Connection implements GroupCaller {
  readonly #options: BrokerServerOptions;
  readonly #identity: string | undefined;
  /** Enforced for this peer; undefined: it may do everything. */
  readonly #access: BrokerAccess | undefined;
  readonly #frames: FrameSocket;
  readonly #subscriptions: Map<number, OpenSubscription>;
  /** Why it may not publish to a topic, until the policies change; undefined: it may. */
  readonly #publishRefusals: Map<string, string | undefined>;
  readonly #stopFollowing: (() => void) | undefined;
  /** Claimed by the peer. */
  #appId: string | undefined;
  /** The peer has said hello and waits for its welcome. */
  #waiting: NodeJS.Timeout | undefined;

  constructor(socket: net.Socket, options: BrokerServerOptions, identity: string | undefined) {
    const { authorization } = options;
    this.#options = options;
    this.#identity = identity;
    this.#access = identity === undefined || authorization?.isOperator(identity) === true ? undefined : authorization?.access;
    this.#subscriptions = new Map();
    this.#publishRefusals = new Map();
    this.#appId = undefined;
    this.#waiting = undefined;
    this.#stopFollowing = this.#access?.onChange(() => this.#accessChanged());
    this.#frames = new FrameSocket(
      socket,
      (kind, content) => this.#onFrame(kind, content),
      (reason) => {
        options.logger.debug('a client of the broker has gone', { reason });
        this.#stopFollowing?.();
        clearTimeout(this.#waiting);
        for (const { membership } of this.#subscriptions.values()) membership.leave();
        this.#subscriptions.clear();
      },
    );
    boundary.own(socket).on('drain', () => {
      for (const { membership } of this.#subscriptions.values()) membership.writable();
    });
  }

  get identity(): string {
    return this.#identity ?? '';
  }

  ownershipOf(topic: string, group: string, owner: string): 'own' | 'free' | 'foreign' {
    return this.#access === undefined || this.#refusal('SUBSCRIBE', topic) === undefined
      ? (this.#access?.ownershipOf(this.#peer, topic, group, owner) ?? 'own')
      : 'foreign';
  }

  get #peer(): BrokerPeer {
    return { identity: this.identity, appId: this.#appId };
  }

  #onFrame(kind: number, content: Cursor): void {
    switch (kind) {
      case frameKind.hello:
        return this.#hello(content.u8() >= 2 ? content.text() : undefined);
      case frameKind.publish:
        return this.#publish(content);
      case frameKind.subscribe:
        return this.#subscribe(content);
      case frameKind.unsubscribe: {
        const id = content.u32();
        this.#subscriptions.get(id)?.membership.leave();
        this.#subscriptions.delete(id);
        return;
      }
      case frameKind.settle: {
        const id = content.u32();
        const [partition, offset, delayMs] = [content.u16(), content.f64(), content.f64()];
        return this.#subscriptions.get(id)?.membership.settle(partition, offset, Number.isNaN(delayMs) ? 0 : Math.min(delayMs, maxDelayMs));
      }
      case frameKind.retire:
        return this.#subscriptions.get(content.u32())?.membership.retire();
      case frameKind.ask:
        return this.#startAnswer(content.u32(), content.text());
      default:
        // Of a later version than this one: what is not understood is not answered.
        return;
    }
  }

  #hello(appId: string | undefined): void {
    this.#appId = appId;
    if (this.#access === undefined || appId === undefined || this.#access.isBound(this.#peer)) return this.#welcome();
    clearTimeout(this.#waiting);
    this.#waiting = boundary.after(
      maxAppWaitMs,
      () => this.#welcome(),
      () => this.#frames.close(),
    );
  }

  #welcome(): void {
    clearTimeout(this.#waiting);
    this.#waiting = undefined;
    this.#publishRefusals.clear();
    this.#frames.send(new FrameBuilder(frameKind.welcome, 1).u8(protocolVersion).done());
  }

  /** Access that was withdrawn ends at once. */
  #accessChanged(): void {
    this.#publishRefusals.clear();
    if (this.#waiting !== undefined && this.#access?.isBound(this.#peer) === true) this.#welcome();
    for (const [id, { membership, topic, group }] of [...this.#subscriptions]) {
      const isForeign = this.#access?.ownershipOf(this.#peer, topic, group, this.identity) === 'foreign';
      const refusal = this.#refusal('SUBSCRIBE', topic) ?? (isForeign ? `group ${group} belongs to another application` : undefined);
      if (refusal === undefined) continue;
      this.#subscriptions.delete(id);
      membership.leave();
      const problem = shortText(deniedPrefix + refusal);
      this.#options.logger.info(`a subscription was closed: ${refusal}`, { topic, identity: this.#identity });
      this.#frames.send(new FrameBuilder(frameKind.ended, 4 + textBytes(problem)).u32(id).text(problem).done());
    }
  }

  /** Why the peer may not; undefined: it may. */
  #refusal(operation: TopicOperation, topic: string): string | undefined {
    return this.#access?.refusal(this.#peer, operation, topic);
  }

  #publishRefusal(topic: string): string | undefined {
    if (this.#access === undefined) return undefined;
    if (this.#publishRefusals.has(topic)) return this.#publishRefusals.get(topic);
    const refusal = this.#refusal('PUBLISH', topic);
    if (this.#publishRefusals.size >= maxKeptAnswers) this.#publishRefusals.clear();
    this.#publishRefusals.set(topic, refusal);
    return refusal;
  }

  /** The full name of what the peer calls a topic. */
  #fullName(topic: string): string {
    return this.#access?.fullNameFor(this.#peer, topic) ?? topic;
  }

  #publish(content: Cursor): void {
    const request = content.u32();
    const topic = this.#fullName(content.text());
    const count = content.u32();
    const answer = (problem: string) => this.#frames.send(new FrameBuilder(frameKind.published, 4 + textBytes(problem)).u32(request).text(problem).done());
    const refusal = this.#publishRefusal(topic);
    if (refusal !== undefined) return answer(shortText(deniedPrefix + refusal));
    const bytes = content.rest();
    const records: Buffer[] = [];
    const keys: string[] = [];
    let at = 0;
    for (let i = 0; i < count; i++) {
      const length = recordLengthAt(bytes, at);
      if (length === undefined) return answer('the records cannot be read');
      const record = bytes.subarray(at, at + length);
      const keyEnd = recordOverheadBytes + record.readUInt16LE(32);
      const headersEnd = keyEnd + record.readUInt32LE(34);
      if (headersEnd > record.length) return answer('a record is shorter than it says');
      if (this.#identity !== undefined && !claimsToBe(record.toString('utf8', keyEnd, headersEnd), this.#identity))
        return answer(`${deniedPrefix}a message claims to be of another publisher than the one who sends it`);
      records.push(record);
      keys.push(record.toString('utf8', recordOverheadBytes, keyEnd));
      at += length;
    }
    if (records.length === 0) return answer('');
    this.#options.broker.publish(topic, records, keys, (problem) => {
      if (problem !== undefined) this.#options.logger.error(`messages were refused: ${problem}`, { topic });
      answer(shortText(problem ?? ''));
    });
  }

  #subscribe(content: Cursor): void {
    const id = content.u32();
    const topic = this.#fullName(content.text());
    const group = content.text();
    const credit = Math.max(1, Math.min(maxCredit, content.u32()));
    const from = content.text() === 'latest' ? 'latest' : 'earliest';
    const answer = (problem: string) => this.#frames.send(new FrameBuilder(frameKind.subscribed, 4 + textBytes(problem)).u32(id).text(problem).done());
    if (this.#subscriptions.has(id)) return answer('this number is in use');
    if (this.#subscriptions.size >= maxSubscriptions) return answer(`one client may have ${maxSubscriptions} subscriptions`);
    if (group === '' || group.length > 200) return answer('a group has a name of 1 to 200 characters');
    const refusal = this.#refusal('SUBSCRIBE', topic);
    if (refusal !== undefined) return answer(shortText(deniedPrefix + refusal));
    const member = new SocketMember(id, credit, this.#frames);
    try {
      const membership = this.#options.broker.join(topic, group, from, member, this.#access === undefined ? undefined : this);
      this.#subscriptions.set(id, { member, membership, topic, group });
      member.isAnswered = true;
      answer('');
      member.flush();
    } catch (error) {
      this.#subscriptions.delete(id);
      answer(shortText(problemOf(error)));
    }
  }

  #startAnswer(request: number, text: string): void {
    const failed = () =>
      this.#frames.send(new FrameBuilder(frameKind.answer, 4 + textBytes('internal error') + 4).u32(request).text('internal error').u32(0).done());
    boundary.start(() => this.#ask(request, text), failed);
  }

  async #ask(request: number, text: string): Promise<void> {
    let problem = '';
    let value: unknown = {};
    try {
      value = await this.#answerTo(JSON.parse(text) as Readonly<Record<string, unknown>>);
    } catch (error) {
      problem = shortText(problemOf(error));
    }
    const json = Buffer.from(JSON.stringify(value));
    this.#frames.send(new FrameBuilder(frameKind.answer, 4 + textBytes(problem) + 4, json.length).u32(request).text(problem).u32(json.length).done(), json);
  }

  /** Rejects with MizzenError. */
  async #answerTo(question: Readonly<Record<string, unknown>>): Promise<unknown> {
    const { broker } = this.#options;
    const caller = this.#access === undefined ? undefined : this;
    switch (question['what']) {
      case 'stats':
        return { topics: broker.stats(caller) };
      case 'replay': {
        const topic = this.#fullName(textIn(question, 'topic'));
        const refusal = this.#refusal('SUBSCRIBE', topic);
        if (refusal !== undefined) throw new MizzenError('permission-denied', refusal);
        const to = question['timestampMs'] === undefined ? { offset: numberIn(question, 'offset') } : { timestampMs: numberIn(question, 'timestampMs') };
        await broker.replay(topic, textIn(question, 'group'), to, caller);
        return {};
      }
      case 'adopt':
        if (this.#access !== undefined) throw new MizzenError('permission-denied', 'only the operator of the mesh gives topics to Components');
        await broker.adopt(textIn(question, 'topic'), textIn(question, 'component'));
        return {};
      default:
        throw new MizzenError('unknown-question', `what is ${JSON.stringify(question['what'])}? There are stats, replay and adopt.`);
    }
  }
}

/** The problem of an answer. */
function problemOf(error: unknown): string {
  const isDenied = error instanceof MizzenError && (error.code === 'permission-denied' || error.code === 'group-not-owned');
  return isDenied ? deniedPrefix + error.message : messageOf(error);
}

class SocketMember implements GroupMember {
  readonly id: number;
  credit: number;
  /** Deliveries wait for the answer to the subscription. */
  isAnswered: boolean;
  readonly #waiting: Buffer[];
  readonly #frames: FrameSocket;

  constructor(id: number, credit: number, frames: FrameSocket) {
    this.id = id;
    this.credit = credit;
    this.isAnswered = false;
    this.#waiting = [];
    this.#frames = frames;
  }

  get isWritable(): boolean {
    return this.#frames.backlogBytes < maxBacklogBytes;
  }

  deliver(partition: number, attempt: number, record: Buffer): void {
    const head = new FrameBuilder(frameKind.deliver, 4 + 2 + 4, record.length).u32(this.id).u16(partition).u32(attempt).done();
    if (this.isAnswered) this.#frames.send(head, record);
    else this.#waiting.push(head, record);
  }

  flush(): void {
    this.#frames.send(...this.#waiting.splice(0));
  }
}

function textIn(question: Readonly<Record<string, unknown>>, name: string): string {
  const value = question[name];
  if (typeof value !== 'string' || value === '' || value.length > maxFullNameLength)
    throw new MizzenError('invalid-question', `${name} must be a text of 1 to ${maxFullNameLength} characters`);
  return value;
}

function numberIn(question: Readonly<Record<string, unknown>>, name: string): number {
  const value = question[name] ?? 0;
  if (typeof value !== 'number' || !Number.isSafeInteger(value) || value < 0)
    throw new MizzenError('invalid-question', `${name} must be a whole number from 0 on`);
  return value;
}

function claimsToBe(headers: string, identity: string): boolean {
  try {
    return (JSON.parse(headers) as Record<string, unknown>)[publisherHeader] === identity;
  } catch {
    return false;
  }
}
