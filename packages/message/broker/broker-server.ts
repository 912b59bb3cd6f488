import { once } from 'node:events';
import net from 'node:net';
import tls from 'node:tls';
import { type Logger, MizzenError, messageOf, tlsDefaults } from '@mizzen/common';
import { recordLengthAt, recordOverheadBytes } from '../log/record.ts';
import type { Broker, Membership } from './broker.ts';
import type { GroupMember } from './consumer-group.ts';
import { FrameSocket } from './frame-socket.ts';
import { type Cursor, FrameBuilder, frameKind, protocolVersion, shortText, textBytes } from './frames.ts';

export interface BrokerServerOptions {
  readonly broker: Broker;
  readonly host: string;
  readonly port: number;
  readonly logger: Logger;
  /** Mutual TLS; undefined: plain TCP, for loopback. */
  readonly tls?: () => tls.TlsOptions;
  /** The identity that the peer's certificate proves; undefined: none, and the peer is refused. Absent: identities are not used. */
  readonly identityOf?: (socket: tls.TLSSocket) => string | undefined;
  /** When the peer's certificate ends, and with it the connection; milliseconds since 1970. */
  readonly expiryOf?: (socket: tls.TLSSocket) => number | undefined;
  /** Whether an identity may see and replay the groups of all workloads. */
  readonly isOperator?: (identity: string) => boolean;
}

const maxCredit = 10_000;
/** A message that is given back comes again after this time at the latest. */
const maxDelayMs = 7 * 24 * 3600 * 1000;
const maxSubscriptions = 1_000;
/** A member that has not taken so much is sent nothing more for now. */
const maxBacklogBytes = 4 * 1024 * 1024;
export const publisherHeader = 'x-mizzen-publisher';

/** Serves a broker to sidecars, by the protocol of ./frames.ts. */
export class BrokerServer {
  readonly #options: BrokerServerOptions;
  readonly #server: net.Server;
  readonly #sockets: Set<net.Socket>;

  constructor(options: BrokerServerOptions) {
    this.#options = options;
    this.#sockets = new Set();
    const onSocket = (socket: net.Socket) => {
      this.#sockets.add(socket);
      socket.on('close', () => this.#sockets.delete(socket));
      try {
        const identity = options.identityOf?.(socket as tls.TLSSocket);
        if (options.identityOf !== undefined && identity === undefined) {
          options.logger.warn('a client of the broker was refused: its certificate proves no identity of the mesh', { peer: socket.remoteAddress });
          socket.on('error', () => {});
          return void socket.destroy();
        }
        const expiresAtMs = options.expiryOf?.(socket as tls.TLSSocket);
        if (expiresAtMs !== undefined) closeAtExpiry(socket, expiresAtMs, options.logger, identity);
        new Connection(socket, options, identity);
      } catch (error) {
        options.logger.error(`a connection to the broker cannot be served: ${messageOf(error)}`);
        socket.on('error', () => {});
        socket.destroy();
      }
    };
    this.#server =
      options.tls === undefined
        ? net.createServer(onSocket)
        : tls.createServer({ ...tlsDefaults, ...options.tls(), requestCert: true, rejectUnauthorized: true }, onSocket);
    this.#server.on('tlsClientError', (error: Error) => options.logger.debug('a client of the broker was refused', { error: error.message }));
  }

  get port(): number {
    return (this.#server.address() as net.AddressInfo).port;
  }

  /** Takes a new certificate for the handshakes from now on. */
  renewTls(): void {
    if (this.#server instanceof tls.Server && this.#options.tls !== undefined) this.#server.setSecureContext(this.#options.tls());
  }

  async listen(): Promise<void> {
    this.#server.listen(this.#options.port, this.#options.host);
    await once(this.#server, 'listening');
  }

  async close(): Promise<void> {
    const closed = once(this.#server, 'close');
    this.#server.close();
    for (const socket of this.#sockets) socket.destroy();
    await closed;
  }
}

class Connection {
  readonly #options: BrokerServerOptions;
  readonly #identity: string | undefined;
  /** Whose groups it may use; undefined: all. */
  readonly #owner: string | undefined;
  readonly #frames: FrameSocket;
  readonly #subscriptions: Map<number, { readonly member: SocketMember; readonly membership: Membership }>;

  constructor(socket: net.Socket, options: BrokerServerOptions, identity: string | undefined) {
    this.#options = options;
    this.#identity = identity;
    this.#owner = identity !== undefined && options.isOperator?.(identity) === true ? undefined : identity;
    this.#subscriptions = new Map();
    this.#frames = new FrameSocket(
      socket,
      (kind, content) => this.#onFrame(kind, content),
      (reason) => {
        options.logger.debug('a client of the broker has gone', { reason });
        for (const { membership } of this.#subscriptions.values()) membership.leave();
        this.#subscriptions.clear();
      },
    );
    socket.on('drain', () => {
      for (const { membership } of this.#subscriptions.values()) membership.writable();
    });
  }

  #onFrame(kind: number, content: Cursor): void {
    switch (kind) {
      case frameKind.hello:
        return this.#frames.send(new FrameBuilder(frameKind.welcome, 1).u8(protocolVersion).done());
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
        return void this.#ask(content.u32(), content.text());
      default:
        // Of a later version than this one: what is not understood is not answered.
        return;
    }
  }

  #publish(content: Cursor): void {
    const request = content.u32();
    const topic = content.text();
    const count = content.u32();
    const answer = (problem: string) => this.#frames.send(new FrameBuilder(frameKind.published, 4 + textBytes(problem)).u32(request).text(problem).done());
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
        return answer('a message claims to be of another publisher than the one who sends it');
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
    const topic = content.text();
    const group = content.text();
    const credit = Math.max(1, Math.min(maxCredit, content.u32()));
    const from = content.text() === 'latest' ? 'latest' : 'earliest';
    const answer = (problem: string) => this.#frames.send(new FrameBuilder(frameKind.subscribed, 4 + textBytes(problem)).u32(id).text(problem).done());
    if (this.#subscriptions.has(id)) return answer('this number is in use');
    if (this.#subscriptions.size >= maxSubscriptions) return answer(`one client may have ${maxSubscriptions} subscriptions`);
    if (group === '' || group.length > 200) return answer('a group has a name of 1 to 200 characters');
    const member = new SocketMember(id, credit, this.#frames);
    try {
      const membership = this.#options.broker.join(topic, group, from, member, this.#owner);
      this.#subscriptions.set(id, { member, membership });
      member.isAnswered = true;
      answer('');
      member.flush();
    } catch (error) {
      this.#subscriptions.delete(id);
      answer(shortText(messageOf(error)));
    }
  }

  async #ask(request: number, text: string): Promise<void> {
    let problem = '';
    let value: unknown = {};
    try {
      const question = JSON.parse(text) as { readonly what?: unknown; readonly [name: string]: unknown };
      if (question.what === 'stats') value = { topics: this.#options.broker.stats(this.#owner) };
      else if (question.what === 'replay')
        await this.#options.broker.replay(
          textIn(question, 'topic'),
          textIn(question, 'group'),
          question['timestampMs'] === undefined ? { offset: numberIn(question, 'offset') } : { timestampMs: numberIn(question, 'timestampMs') },
          this.#owner,
        );
      else throw new MizzenError('unknown-question', `what is ${JSON.stringify(question.what)}? There are stats and replay.`);
    } catch (error) {
      problem = shortText(messageOf(error));
    }
    const json = Buffer.from(JSON.stringify(value));
    this.#frames.send(new FrameBuilder(frameKind.answer, 4 + textBytes(problem) + 4, json.length).u32(request).text(problem).u32(json.length).done(), json);
  }
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

const maxTimerMs = 2_147_483_647;

/** A connection lasts no longer than the certificate that it was opened with. Clients come back with their next one. */
function closeAtExpiry(socket: net.Socket, expiresAtMs: number, logger: Logger, identity: string | undefined): void {
  const check = () => {
    const leftMs = expiresAtMs - Date.now();
    if (leftMs > 0) {
      timer = setTimeout(check, Math.min(maxTimerMs, leftMs));
      return;
    }
    logger.info('a connection to the broker is closed: the certificate of its peer has expired', { identity });
    socket.destroy();
  };
  let timer: NodeJS.Timeout | undefined;
  check();
  socket.once('close', () => clearTimeout(timer));
}

function textIn(question: Readonly<Record<string, unknown>>, name: string): string {
  const value = question[name];
  if (typeof value !== 'string' || value === '' || value.length > 200)
    throw new MizzenError('invalid-question', `${name} must be a text of 1 to 200 characters`);
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
