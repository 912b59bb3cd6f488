import { randomInt } from 'node:crypto';
import dgram from 'node:dgram';
import net from 'node:net';
import { errorBoundary } from '@mizzen/common';
import type { ProxyCounters } from '../telemetry/proxy-counters.ts';
import { type AnswerSummary, type Query, readAnswer, responseCodes } from './dns-message.ts';

const boundary = errorBoundary('dns.forward');

/** Asks other servers what the mesh does not know, and keeps what they said for as long as they said it holds. */
export interface DnsForwarderOptions {
  /** Addresses, `:port` allowed; asked in this order. */
  readonly servers: () => readonly string[];
  readonly counters: ProxyCounters;
  /** Milliseconds; for tests. */
  readonly timeoutMs?: number;
  readonly now?: () => number;
}

interface CachedAnswer {
  readonly bytes: Buffer;
  readonly ttlOffsets: readonly number[];
  readonly storedAt: number;
  readonly expiresAt: number;
}

const defaultTimeoutMs = 2_000;
/** Each server is asked this often. */
const rounds = 2;
const maxCached = 10_000;
/** Questions and answers together. Answers by TCP have up to 64 KiB: a count alone would bound nothing. */
const maxCachedBytes = 8 * 1024 * 1024;
/** No answer is kept longer, whatever its servers say; a "no" not longer than RFC 2308 advises. */
const maxTtlSeconds = 3_600;
const maxNegativeTtlSeconds = 300;
/** When no server answers, what one said up to an hour ago is better than nothing (RFC 8767). */
const staleMs = 3_600_000;
const staleTtlSeconds = 30;
const maxUnderWay = 1_000;
/**
 * Questions leave from ports that no application is given by the kernel (its range starts at 32768). Were one of them used by an
 * application a moment ago, connection tracking would take our question for that application's and send it back to us.
 */
const sourcePorts = { from: 16_384, to: 32_768 };
const bindAttempts = 8;

export class DnsForwarder {
  readonly #servers: () => readonly string[];
  readonly #counters: ProxyCounters;
  readonly #timeoutMs: number;
  readonly #now: () => number;
  /** By question; a Map keeps the order of use. */
  readonly #cache: Map<string, CachedAnswer>;
  #cachedBytes: number;
  readonly #underWay: Map<string, Promise<Buffer | undefined>>;
  readonly #sockets: Set<dgram.Socket | net.Socket>;
  #isClosed: boolean;

  constructor(options: DnsForwarderOptions) {
    this.#servers = options.servers;
    this.#counters = options.counters;
    this.#timeoutMs = options.timeoutMs ?? defaultTimeoutMs;
    this.#now = options.now ?? Date.now;
    this.#cache = new Map();
    this.#cachedBytes = 0;
    this.#underWay = new Map();
    this.#sockets = new Set();
    this.#isClosed = false;
  }

  /** The answer, with the id of `message`; undefined: nobody could be asked. */
  async ask(message: Buffer, query: Query): Promise<Buffer | undefined> {
    // The question, and what of the rest changes the answer: recursion, checking disabled, the OPT record with its DO bit.
    const key = `${message.toString('latin1', 12, query.questionEnd).toLowerCase()}|${message[2]! & 1}|${message[3]! & 0x10}|${message.toString('latin1', query.questionEnd)}`;
    const cached = this.#cached(key, false);
    if (cached !== undefined) {
      this.#counters.values.dns_cache_hits_total++;
      return withId(cached, query.id);
    }
    let asking = this.#underWay.get(key);
    if (asking === undefined) {
      if (this.#underWay.size >= maxUnderWay) return undefined;
      asking = this.#askServers(message, query, key).finally(() => this.#underWay.delete(key));
      this.#underWay.set(key, asking);
    }
    const answer = (await asking) ?? this.#cached(key, true);
    return answer && withId(answer, query.id);
  }

  close(): void {
    this.#isClosed = true;
    for (const socket of this.#sockets) {
      if (socket instanceof net.Socket) socket.destroy();
      else socket.close();
    }
    this.#sockets.clear();
  }

  #cached(key: string, isStaleGood: boolean): Buffer | undefined {
    const entry = this.#cache.get(key);
    if (entry === undefined) return undefined;
    const now = this.#now();
    if (now >= entry.expiresAt && (!isStaleGood || now >= entry.expiresAt + staleMs)) return undefined;
    this.#cache.delete(key);
    this.#cache.set(key, entry);
    const bytes = Buffer.from(entry.bytes);
    const age = Math.floor((now - entry.storedAt) / 1000);
    for (const at of entry.ttlOffsets) {
      const left = bytes.readUInt32BE(at) - age;
      bytes.writeUInt32BE(left > 0 ? left : isStaleGood ? staleTtlSeconds : 0, at);
    }
    return bytes;
  }

  async #askServers(message: Buffer, query: Query, key: string): Promise<Buffer | undefined> {
    this.#counters.values.dns_forwarded_total++;
    const question = message.subarray(12, query.questionEnd);
    let refusal: Buffer | undefined;
    const servers = this.#servers().map(serverAddress);
    for (let round = 0; round < rounds; round++) {
      for (const server of servers) {
        if (this.#isClosed) return undefined;
        let answer = await this.#askByUdp(message, question, server);
        if (answer?.summary.isTruncated) answer = (await this.#askByTcp(message, question, server)) ?? answer;
        if (answer === undefined) continue;
        const { bytes, summary } = answer;
        // A server that cannot or will not say is no reason not to ask the next.
        if (summary.code === responseCodes.serverFailure || summary.code === responseCodes.refused) {
          refusal = bytes;
          continue;
        }
        limitTtls(bytes, summary.ttlOffsets);
        this.#keep(key, bytes, summary);
        return bytes;
      }
    }
    return refusal;
  }

  #keep(key: string, bytes: Buffer, summary: AnswerSummary): void {
    const isNegative = summary.code !== responseCodes.ok || bytes.readUInt16BE(6) === 0;
    const ttlSeconds = Math.min(summary.ttlSeconds, isNegative ? maxNegativeTtlSeconds : maxTtlSeconds);
    if (ttlSeconds <= 0 || summary.isTruncated) return;
    this.#drop(key);
    this.#cachedBytes += sizeOf(key, bytes);
    for (const oldest of this.#cache.keys()) {
      if (this.#cache.size < maxCached && this.#cachedBytes <= maxCachedBytes) break;
      this.#drop(oldest);
    }
    const now = this.#now();
    // A copy: an answer may be a part of a larger buffer, which would be kept with it.
    this.#cache.set(key, { bytes: Buffer.from(bytes), ttlOffsets: summary.ttlOffsets, storedAt: now, expiresAt: now + ttlSeconds * 1000 });
  }

  #drop(key: string): void {
    const entry = this.#cache.get(key);
    if (entry === undefined) return;
    this.#cachedBytes -= sizeOf(key, entry.bytes);
    this.#cache.delete(key);
  }

  /** Bytes that the cache holds; never more than `maxCachedBytes`. */
  get cachedBytes(): number {
    return this.#cachedBytes;
  }

  async #askByUdp(message: Buffer, question: Buffer, server: { readonly address: string; readonly port: number }): Promise<Answer | undefined> {
    const socket = await this.#boundSocket(server.address);
    if (socket === undefined) return undefined;
    const id = randomInt(65_536);
    return new Promise((resolve) => {
      const finish = (answer: Answer | undefined) => {
        clearTimeout(timer);
        if (this.#sockets.delete(socket)) socket.close();
        resolve(answer);
      };
      const fail = () => finish(undefined);
      const timer = boundary.after(this.#timeoutMs, fail, fail);
      socket.on('error', fail);
      // Connected: datagrams of others do not come through.
      const read = (bytes: Buffer) => {
        const summary = bytes.length >= 2 && bytes.readUInt16BE(0) === id ? readAnswer(bytes, question) : undefined;
        if (summary !== undefined) finish({ bytes, summary });
      };
      socket.on('message', boundary.guard(read, fail));
      const send = () => socket.send(withId(message, id), (error) => error && finish(undefined));
      socket.connect(server.port, server.address, boundary.wrap(send, fail));
    });
  }

  async #boundSocket(address: string): Promise<dgram.Socket | undefined> {
    for (let attempt = 0; attempt < bindAttempts && !this.#isClosed; attempt++) {
      const type = net.isIPv6(address) ? 'udp6' : 'udp4';
      // Those who wait for an event that an exception has lost learn of it.
      const socket: dgram.Socket = boundary.own(dgram.createSocket(type), () => socket.emit('error', new Error('internal error')));
      const isBound = await new Promise<boolean>((resolve) => {
        socket.once('error', () => resolve(false));
        socket.bind(randomInt(sourcePorts.from, sourcePorts.to), () => resolve(true));
      });
      if (!isBound || this.#isClosed) {
        socket.close();
        continue;
      }
      this.#sockets.add(socket);
      return socket;
    }
    return undefined;
  }

  #askByTcp(message: Buffer, question: Buffer, server: { readonly address: string; readonly port: number }): Promise<Answer | undefined> {
    const id = randomInt(65_536);
    return new Promise((resolve) => {
      const socket = boundary.own(net.connect({ host: server.address, port: server.port, noDelay: true }));
      this.#sockets.add(socket);
      const pieces: Buffer[] = [];
      let received = 0;
      const finish = (answer: Answer | undefined) => {
        clearTimeout(timer);
        this.#sockets.delete(socket);
        socket.destroy();
        resolve(answer);
      };
      const fail = () => finish(undefined);
      const timer = boundary.after(this.#timeoutMs, fail, fail);
      socket.on('error', fail);
      socket.on('close', fail);
      socket.on('connect', () => socket.write(framed(withId(message, id))));
      socket.on('data', (chunk) => {
        pieces.push(chunk);
        received += chunk.length;
        // Joined when it is whole: a server may send it byte by byte.
        if (received < 2) return;
        const [first, second] = [pieces[0]?.[0] ?? 0, pieces[0]?.[1] ?? pieces[1]?.[0] ?? 0];
        const length = (first << 8) | second;
        if (received < 2 + length) return;
        const bytes = Buffer.concat(pieces).subarray(2, 2 + length);
        const summary = length >= 2 && bytes.readUInt16BE(0) === id ? readAnswer(bytes, question) : undefined;
        finish(summary && { bytes, summary });
      });
    });
  }
}

interface Answer {
  readonly bytes: Buffer;
  readonly summary: AnswerSummary;
}

const sizeOf = (key: string, bytes: Buffer) => key.length + bytes.length;

/** A client keeps an answer no longer than we do. RFC 2181 section 8: a TTL with its highest bit set counts as zero. */
function limitTtls(bytes: Buffer, offsets: readonly number[]): void {
  for (const at of offsets) {
    const seconds = bytes.readUInt32BE(at);
    if (seconds > maxTtlSeconds) bytes.writeUInt32BE(seconds > 0x7fff_ffff ? 0 : maxTtlSeconds, at);
  }
}

/** RFC 1035 section 4.2.2: by TCP a message follows its length. */
export function framed(message: Buffer): Buffer {
  const frame = Buffer.allocUnsafe(2 + message.length);
  frame.writeUInt16BE(message.length, 0);
  message.copy(frame, 2);
  return frame;
}

function withId(message: Buffer, id: number): Buffer {
  const copy = Buffer.from(message);
  copy.writeUInt16BE(id, 0);
  return copy;
}

function serverAddress(text: string): { readonly address: string; readonly port: number } {
  const [, bracketed, bracketedPort] = /^\[(.+)\](?::(\d+))?$/.exec(text) ?? [];
  if (bracketed !== undefined) return { address: bracketed, port: Number(bracketedPort ?? 53) };
  if (net.isIPv6(text)) return { address: text, port: 53 };
  const [address = '', port] = text.split(':');
  return { address, port: Number(port ?? 53) };
}
