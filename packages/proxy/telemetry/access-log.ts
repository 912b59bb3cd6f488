import { close, open, write } from 'node:fs';
import { hostname } from 'node:os';
import { errorBoundary, MizzenError } from '@mizzen/common';
import { unicodeText, utf8Bytes } from '../message/header-bytes.ts';
import type { ProxyCounters } from './proxy-counters.ts';
import { redactQuery } from './redact-query.ts';

const boundary = errorBoundary('access-log');

/** What an access log line can say of a finished request or TCP connection; what the latter has not is '' or 0. */
export interface LoggedStream {
  readonly method: string;
  readonly path: string;
  readonly originalPath: string;
  /** Names of query parameters that hold credentials here, beside the well-known ones. */
  readonly secretParameters: readonly string[];
  readonly protocol: string;
  readonly authority: string;
  readonly responseCode: number;
  readonly responseFlags: string;
  readonly responseDetails: string;
  readonly bytesReceived: number;
  readonly bytesSent: number;
  readonly durationMs: number;
  readonly upstreamServiceTimeMs: number;
  readonly upstreamHost: string;
  readonly upstreamCluster: string;
  readonly routeName: string;
  readonly peerUri: string;
  readonly remoteAddress: string;
  readonly remotePort: number;
  readonly localAddress: string;
  readonly localPort: number;
  /** The server name that the client asked for in its TLS handshake. */
  readonly serverName: string;
  readonly startedAt: number;
  requestHeader(name: string): string | undefined;
  responseHeader(name: string): string | undefined;
}

type Segment = string | ((request: LoggedStream) => string);

/** Envoy's default line (Envoy docs, "Access logging: Default format string"). */
export const defaultAccessLogFormat =
  '[%START_TIME%] "%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%" %RESPONSE_CODE% %RESPONSE_FLAGS% %BYTES_RECEIVED% %BYTES_SENT% %DURATION% %RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% "%REQ(X-FORWARDED-FOR)%" "%REQ(USER-AGENT)%" "%REQ(X-REQUEST-ID)%" "%REQ(:AUTHORITY)%" "%UPSTREAM_HOST%"\n';

/** A header of a peer in a line of a log: no line breaks, no quotes that end the field early. */
const safe = (text: string) => (/["\\\x00-\x1f\x7f-\xff]/.test(text) ? escaped(text) : text);

/** The characters of ../../common/printable-text.ts as UTF-8: C1 controls, which terminals obey, and marks that reorder or hide text. */
const unprintableUtf8 =
  /["\\\x00-\x1f\x7f]|\xc2[\x80-\x9f]|\xd8\x9c|\xe1\xa0\x8e|\xe2\x80[\x8b-\x8f\xa8-\xae]|\xe2\x81[\xa0-\xaf]|\xef\xbb\xbf|\xef\xbf[\xb9-\xbb]|\xf3\xa0[\x80\x81][\x80-\xbf]/g;

/** Every byte above 7F where the text is not UTF-8. */
function escaped(text: string): string {
  const isUtf8 = unicodeText(text) !== text;
  const escapeBytes = (bytes: string) => bytes.replace(/./gs, (byte) => `\\x${byte.charCodeAt(0).toString(16).padStart(2, '0')}`);
  return text.replace(isUtf8 ? unprintableUtf8 : /["\\\x00-\x1f\x7f-\xff]/g, escapeBytes);
}

/** Compiles a format string into the function that makes the line. Unknown operators are refused. */
export function compileAccessLogFormat(format: string): (request: LoggedStream) => string {
  return compileFormat(format, '-', 'access log format');
}

/** The same for other texts that are made of what is known of a request: `empty` stands for what it has not (Envoy, "Command operators"). */
export function compileFormat(given: string, empty: string, place: string): (request: LoggedStream) => string {
  const segments: Segment[] = [];
  // What is made of a request are byte strings, and so is the text around them.
  const format = utf8Bytes(given);
  let literal = '';
  for (let at = 0; at < format.length; ) {
    if (format[at] !== '%') {
      literal += format[at++];
      continue;
    }
    if (format[at + 1] === '%') {
      literal += '%';
      at += 2;
      continue;
    }
    const end = format.indexOf('%', at + 1);
    if (end < 0) throw new MizzenError('invalid-access-log', `${place}: the "%" at ${at} has no end; %% stands for one`);
    if (literal) segments.push(literal);
    literal = '';
    segments.push(compileOperator(format.slice(at + 1, end), empty, place));
    at = end + 1;
  }
  if (literal) segments.push(literal);
  return (request) => {
    let line = '';
    for (let i = 0; i < segments.length; i++) {
      const segment = segments[i]!;
      line += typeof segment === 'string' ? segment : segment(request);
    }
    return line;
  };
}

function compileOperator(text: string, empty: string, place: string): (request: LoggedStream) => string {
  const match = /^([A-Z_0-9]+)(?:\(([^)]*)\))?(?::(\d+))?$/.exec(text);
  if (!match) throw new MizzenError('invalid-format', `${place}: %${text}% is no operator`);
  const [, name, argument = '', length] = match;
  const read = operator(name!, argument, place);
  const full = (request: LoggedStream) => read(request) || empty;
  return length === undefined ? full : (request) => full(request).slice(0, Number(length));
}

/** What an operator reads; '' where there is nothing. */
function operator(name: string, argument: string, place: string): (request: LoggedStream) => string {
  switch (name) {
    case 'START_TIME':
      if (argument !== '') break;
      return (request) => formatStartTime(request.startedAt);
    case 'PROTOCOL':
      return (request) => request.protocol;
    case 'RESPONSE_CODE':
      return (request) => String(request.responseCode);
    case 'RESPONSE_CODE_DETAILS':
    case 'CONNECTION_TERMINATION_DETAILS':
      return (request) => request.responseDetails;
    case 'RESPONSE_FLAGS':
      return (request) => request.responseFlags;
    case 'BYTES_RECEIVED':
      return (request) => String(request.bytesReceived);
    case 'BYTES_SENT':
      return (request) => String(request.bytesSent);
    case 'DURATION':
      return (request) => String(Math.round(request.durationMs));
    case 'UPSTREAM_HOST':
    case 'UPSTREAM_REMOTE_ADDRESS':
      return (request) => request.upstreamHost;
    case 'UPSTREAM_CLUSTER':
    case 'UPSTREAM_CLUSTER_RAW':
      return (request) => utf8Bytes(request.upstreamCluster);
    case 'ROUTE_NAME':
      return (request) => utf8Bytes(request.routeName);
    case 'DOWNSTREAM_PEER_URI_SAN':
      return (request) => request.peerUri;
    case 'DOWNSTREAM_REMOTE_ADDRESS':
    case 'DOWNSTREAM_DIRECT_REMOTE_ADDRESS':
      return (request) => addressText(request.remoteAddress, request.remotePort);
    case 'DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT':
    case 'DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT':
      return (request) => request.remoteAddress;
    case 'DOWNSTREAM_REMOTE_PORT':
      return (request) => String(request.remotePort);
    case 'DOWNSTREAM_LOCAL_ADDRESS':
      return (request) => addressText(request.localAddress, request.localPort);
    case 'DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT':
      return (request) => request.localAddress;
    case 'DOWNSTREAM_LOCAL_PORT':
      return (request) => String(request.localPort);
    case 'REQUESTED_SERVER_NAME':
      return (request) => safe(request.serverName);
    case 'HOSTNAME':
      return () => utf8Bytes(hostname());
    case 'REQ': {
      const [first, second] = argument.toLowerCase().split('?');
      const readers = [first, second].filter((header) => header !== undefined).map(requestHeaderReader);
      return readers.length === 2 ? (request) => safe(readers[0]!(request) ?? readers[1]!(request) ?? '') : (request) => safe(readers[0]!(request) ?? '');
    }
    case 'RESP': {
      const header = argument.toLowerCase();
      if (header === 'x-envoy-upstream-service-time') return (request) => (request.upstreamServiceTimeMs < 0 ? '' : String(request.upstreamServiceTimeMs));
      return (request) => safe(request.responseHeader(header) ?? '');
    }
  }
  throw new MizzenError('invalid-format', `${place}: the operator %${name}${argument && `(${argument})`}% is not supported`);
}

function requestHeaderReader(name: string): (request: LoggedStream) => string | undefined {
  switch (name) {
    case ':method':
      return (request) => request.method;
    case ':path':
      return (request) => redactQuery(request.path, request.secretParameters);
    case ':authority':
      return (request) => request.authority;
    case 'x-envoy-original-path':
      return (request) => (request.originalPath === request.path ? undefined : redactQuery(request.originalPath, request.secretParameters));
    default:
      return (request) => request.requestHeader(name);
  }
}

function addressText(address: string, port: number): string {
  return address === '' ? '' : address.includes(':') ? `[${address}]:${port}` : `${address}:${port}`;
}

/** One compiled access logger. */
export interface AccessLog {
  readonly file: AccessLogFile;
  readonly format: (stream: LoggedStream) => string;
}

export function writeAccessLogs(logs: readonly AccessLog[], stream: LoggedStream): void {
  for (let i = 0; i < logs.length; i++) logs[i]!.file.append(logs[i]!.format(stream));
}

let cachedSecond = -1;
let cachedPrefix = '';

/** ISO 8601 with milliseconds; the part down to the second is made once a second. */
function formatStartTime(ms: number): string {
  const second = Math.floor(ms / 1000);
  if (second !== cachedSecond) {
    cachedSecond = second;
    cachedPrefix = new Date(second * 1000).toISOString().slice(0, 20);
  }
  const rest = Math.floor(ms - second * 1000);
  return `${cachedPrefix}${rest < 10 ? '00' : rest < 100 ? '0' : ''}${rest}Z`;
}

function linesIn(bytes: Buffer, from: number): number {
  let count = 0;
  for (let at = bytes.indexOf(0x0a, from); at >= 0; at = bytes.indexOf(0x0a, at + 1)) count++;
  return count;
}

const blockBytes = 64 * 1024;
const flushIntervalMs = 1_000;
/** A pipe that is full is tried again after this time. */
const retryMs = 10;
const maxCloseMs = 1_000;
/** When the log's reader falls this far behind, lines are dropped (and counted) rather than requests. */
const maxPendingBlocks = 128;

/**
 * Appends lines to a file or to standard output, a block at a time and without ever blocking the event loop. Lines are copied into the
 * block at once: kept as strings until the flush they would be a burden for the garbage collector.
 */
export class AccessLogFile {
  readonly #counters: ProxyCounters;
  #descriptor: number | undefined;
  #block: Buffer;
  #used: number;
  /** Full blocks that wait to be written. */
  readonly #pending: Buffer[];
  #isWriting: boolean;
  #timer: NodeJS.Timeout | undefined;
  #idle: (() => void) | undefined;
  #isClosed: boolean;

  constructor(path: string, counters: ProxyCounters) {
    this.#counters = counters;
    this.#block = Buffer.allocUnsafe(blockBytes);
    this.#used = 0;
    this.#pending = [];
    this.#isWriting = false;
    this.#timer = undefined;
    this.#idle = undefined;
    this.#isClosed = false;
    this.#descriptor = path === '/dev/stdout' ? 1 : path === '/dev/stderr' ? 2 : undefined;
    // Opening the stream makes a pipe non-blocking: a write to a pipe that is not read must not hold a thread.
    if (this.#descriptor === 1) process.stdout.on('error', () => {});
    else if (this.#descriptor === 2) process.stderr.on('error', () => {});
    if (this.#descriptor === undefined) {
      const opened = boundary.wrap(() => this.#writeNext());
      open(path, 'a', (error, descriptor) => {
        this.#descriptor = error ? 2 : descriptor;
        opened();
      });
    }
  }

  append(line: string): void {
    if (this.#used + line.length > blockBytes) this.#closeBlock();
    if (this.#pending.length > maxPendingBlocks || line.length > blockBytes) {
      this.#counters.values.access_log_lines_dropped_total++;
      return;
    }
    this.#used += this.#block.write(line, this.#used, 'latin1');
    if (this.#timer === undefined) this.#timer = boundary.after(flushIntervalMs, this.#flush, this.#flush).unref();
  }

  /** Writes what is left, as far as it is taken within a second. */
  async close(): Promise<void> {
    this.#flush();
    if (this.#isWriting) {
      await new Promise<void>((resolve) => {
        const timer = boundary.after(maxCloseMs, resolve);
        this.#idle = () => {
          clearTimeout(timer);
          resolve();
        };
      });
      this.#isClosed = true;
    }
    if (this.#descriptor !== undefined && this.#descriptor > 2) close(this.#descriptor, () => {});
  }

  readonly #flush = (): void => {
    clearTimeout(this.#timer);
    this.#timer = undefined;
    this.#closeBlock();
  };

  #closeBlock(): void {
    if (this.#used === 0) return;
    this.#pending.push(this.#block.subarray(0, this.#used));
    this.#block = Buffer.allocUnsafe(blockBytes);
    this.#used = 0;
    this.#writeNext();
  }

  #writeNext(): void {
    if (this.#isWriting || this.#descriptor === undefined) return;
    const block = this.#pending.shift();
    if (block === undefined) return this.#idle?.();
    this.#isWriting = true;
    this.#writeAll(block, 0);
  }

  #writeAll(bytes: Buffer, from: number): void {
    const done = (error: NodeJS.ErrnoException | null, written: number) => {
      if (error?.code === 'EAGAIN' && !this.#isClosed) return void boundary.after(retryMs, () => this.#writeAll(bytes, from), failed);
      if (!error && from + written < bytes.length) return this.#writeAll(bytes, from + written);
      // A full disk, a closed pipe: what the block held is lost, and requests go on.
      if (error) this.#counters.values.access_log_lines_dropped_total += linesIn(bytes, from);
      this.#isWriting = false;
      this.#writeNext();
    };
    // What became of the block is not known: the log continues with the next.
    const failed = () => {
      this.#counters.values.access_log_lines_dropped_total += linesIn(bytes, from);
      this.#isWriting = false;
      this.#writeNext();
    };
    write(this.#descriptor!, bytes, from, bytes.length - from, null, boundary.wrap(done, failed));
  }
}
