import { CachePerRouteSchema } from '@mizzen/envoy-api/gen/mizzen/http/v1/filters_pb.js';
import type { ProxyContext } from '../../http/connection-settings.ts';
import type { Exchange, ResponseObserver } from '../../http/exchange.ts';
import { KeptSlices } from '../../message/kept-slices.ts';
import { ResponseHead } from '../../message/response-head.ts';
import { type FilterKind, type HttpFilter, isPersonalNote } from '../filter.ts';
import { unpackConfig } from '../unpack-config.ts';
import { freshnessMs, isStorable, readCacheControl } from './cache-control.ts';
import { ResponseStore, type StoredResponse, varyKey } from './response-store.ts';

const name = 'mizzen.filters.http.cache';
const jwtFilter = 'envoy.filters.http.jwt_authn';
/** Fields by which servers take a request for one of another method: its answer is not that of the URI. */
const methodOverrides = ['x-http-method-override', 'x-http-method', 'x-method-override'];
const defaultMaxBodyBytes = 1024 * 1024;
const defaultMaxBytes = 64 * 1024 * 1024;

interface CachePolicy {
  readonly defaultTtlMs: number;
  readonly maxBodyBytes: number;
  readonly maxBytes: number;
}

/**
 * mizzen.filters.http.cache: a shared cache in memory, of this proxy alone (RFC 9111). It keeps fresh answers to GET, honours Cache-Control of
 * both sides, Vary, Age, conditional requests and invalidation by unsafe methods, and says in Cache-Status (RFC 9211) what it did. It does
 * not: revalidate with the server, serve stale, keep ranges or partial answers, collapse requests for the same thing.
 */
export const cache: FilterKind = {
  name,
  create: (_any, _place, context) => new CacheFilter(context),
  compileRoute(any, place): CachePolicy {
    const { defaultTtlMs, maxBodyBytes, maxBytes } = unpackConfig(CachePerRouteSchema, any, place);
    return { defaultTtlMs, maxBodyBytes: maxBodyBytes || defaultMaxBodyBytes, maxBytes: Number(maxBytes) || defaultMaxBytes };
  },
};

class CacheFilter implements HttpFilter {
  readonly name = name;
  readonly #context: ProxyContext;
  readonly #store: ResponseStore;

  constructor(context: ProxyContext) {
    this.#context = context;
    const kept = context.filterStates.get(name) as ResponseStore | undefined;
    this.#store = kept ?? new ResponseStore();
    context.filterStates.set(name, this.#store);
  }

  onRequest(exchange: Exchange): 'continue' | 'stop' {
    const policy = exchange.filterConfig(name) as CachePolicy | undefined;
    if (policy === undefined || exchange.isTunnelRequest !== 'no') return 'continue';
    const { head } = exchange;
    const uri = `${exchange.settings.isTls ? 'https' : 'http'}://${head.authority.toLowerCase()}${head.target}`;
    if (head.method !== 'GET' && head.method !== 'HEAD') {
      if (head.method !== 'OPTIONS' && head.method !== 'TRACE') exchange.observeResponse(new Invalidation(this.#store, uri));
      return 'continue';
    }
    const asked = readCacheControl(head.headers.getJoined('cache-control'));
    // A range of an answer is not ours to cut.
    if (asked.has('no-store') || head.headers.has('range') || head.hasBody || methodOverrides.some((field) => head.headers.has(field)))
      return this.#miss(exchange, 'bypass');
    const now = Date.now();
    const stored = this.#store.find(uri, head.headers);
    // A filter before this one may have taken the credential out of the request.
    const isSecret = exchange.consumer !== undefined || head.headers.has('authorization') || exchange.metadata(jwtFilter) !== undefined;
    const isFresh = stored !== undefined && stored.expiresAtMs > now && !asked.has('no-cache') && isYoungEnough(asked.get('max-age'), ageOf(stored, now));
    if (stored !== undefined && isFresh) {
      this.#context.counters.count('cache_requests_total{result="hit"}');
      this.#serve(exchange, stored, now);
      return 'stop';
    }
    if (asked.has('only-if-cached')) {
      exchange.replyProblem(504, { title: 'Gateway Timeout', detail: 'this is not in the cache (only-if-cached)' }, 'cache_only_if_cached');
      return 'stop';
    }
    this.#miss(exchange, stored === undefined ? 'uri-miss' : 'stale');
    if (head.method === 'GET') exchange.observeResponse(new Recorder(this.#store, policy, uri, exchange, isSecret));
    return 'continue';
  }

  onResponse(exchange: Exchange, head: ResponseHead): void {
    const status = exchange.note(name) as string | undefined;
    if (status !== undefined) head.headers.set('cache-status', status);
  }

  #miss(exchange: Exchange, why: string): 'continue' {
    this.#context.counters.count(`cache_requests_total{result="${why}"}`);
    exchange.setNote(name, `mizzen; fwd=${why}`);
    return 'continue';
  }

  #serve(exchange: Exchange, stored: StoredResponse, now: number): void {
    const { headers } = exchange.head;
    const age = ageOf(stored, now);
    const head = new ResponseHead();
    const isMatch = matches(headers.getJoined('if-none-match'), headers.get('if-modified-since'), stored);
    head.status = isMatch ? 304 : stored.status;
    for (const [field, value] of stored.fields) if (!isMatch || !field.startsWith('content-')) head.headers.add(field, value);
    head.headers.add('age', String(Math.floor(age / 1000)));
    head.contentLength = isMatch ? 0 : stored.body.length;
    if (!isMatch) head.headers.add('content-length', String(stored.body.length));
    exchange.setNote(name, `mizzen; hit; ttl=${Math.floor((stored.expiresAtMs - now) / 1000)}`);
    exchange.route?.responseHeaders?.apply(head.headers, exchange);
    exchange.replyHead(head, 'response_from_cache', isMatch ? Buffer.alloc(0) : stored.body);
  }
}

/** A client of a gateway that proves who it is. Within the mesh every caller does, on behalf of others. */
function hasCertificate({ downstream, settings }: Exchange): boolean {
  return settings.direction === 'gateway' && downstream.client.peer !== undefined;
}

function ageOf(stored: StoredResponse, now: number): number {
  return Math.max(0, stored.ageMs + now - stored.storedAtMs);
}

function isYoungEnough(maxAge: string | undefined, ageMs: number): boolean {
  return maxAge === undefined || !/^\d+$/.test(maxAge) || ageMs <= Number(maxAge) * 1000;
}

/** RFC 9110 section 13.2.2: If-None-Match first, If-Modified-Since only without it. */
function matches(ifNoneMatch: string | undefined, ifModifiedSince: string | undefined, stored: StoredResponse): boolean {
  if (stored.status !== 200) return false;
  const plain = (tag: string) => tag.trim().replace(/^W\//, '');
  const etag = stored.fields.find(([field]) => field === 'etag')?.[1];
  if (ifNoneMatch !== undefined) return ifNoneMatch.trim() === '*' || (etag !== undefined && ifNoneMatch.split(',').some((tag) => plain(tag) === plain(etag)));
  const modified = stored.fields.find(([field]) => field === 'last-modified')?.[1];
  if (ifModifiedSince === undefined || modified === undefined) return false;
  return Date.parse(modified) <= Date.parse(ifModifiedSince);
}

const notStored = new Set([
  'connection',
  'keep-alive',
  'proxy-authenticate',
  'proxy-connection',
  'te',
  'trailer',
  'transfer-encoding',
  'upgrade',
  'content-length',
  'age',
  'cache-status',
]);

/** Keeps an answer while it goes by. */
class Recorder implements ResponseObserver {
  readonly #store: ResponseStore;
  readonly #policy: CachePolicy;
  readonly #uri: string;
  readonly #exchange: Exchange;
  readonly #isSecret: boolean;
  #pending: Omit<StoredResponse, 'body'> | undefined;
  #slices: KeptSlices;
  #bytes: number;

  constructor(store: ResponseStore, policy: CachePolicy, uri: string, exchange: Exchange, isSecret: boolean) {
    this.#store = store;
    this.#policy = policy;
    this.#uri = uri;
    this.#exchange = exchange;
    this.#isSecret = isSecret;
    this.#pending = undefined;
    this.#slices = new KeptSlices();
    this.#bytes = 0;
  }

  onHead(head: ResponseHead): void {
    const said = readCacheControl(head.headers.getJoined('cache-control'));
    const vary = head.headers.getJoined('vary');
    if (!isStorable(head.status, said, this.#isSecret) || head.headers.has('set-cookie') || vary?.includes('*') === true) return;
    if (head.headers.has('content-range') || head.contentLength > this.#policy.maxBodyBytes) return;
    const now = Date.now();
    const age = Number(head.headers.get('age') ?? 0) * 1000 || 0;
    // What the server says nothing about may be meant for the one who asked with a cookie or credential.
    const isPersonal =
      this.#isSecret || this.#exchange.head.headers.has('cookie') || this.#exchange.note(isPersonalNote) !== undefined || hasCertificate(this.#exchange);
    const fresh = freshnessMs(head, said, head.status === 200 && !isPersonal ? this.#policy.defaultTtlMs : 0, now) - age;
    if (!(fresh > 0)) return;
    const fields = head.headers.names.flatMap((field, i) => (notStored.has(field) ? [] : [[field, head.headers.valueAt(i)] as const]));
    const varied = (vary ?? '')
      .split(',')
      .map((field) => field.trim().toLowerCase())
      .filter(Boolean)
      .sort();
    this.#pending = {
      status: head.status,
      fields,
      vary: varied,
      varyKey: varyKey(varied, this.#exchange.head.headers),
      storedAtMs: now,
      ageMs: age,
      expiresAtMs: now + fresh,
    };
    this.#exchange.setNote(name, `${this.#exchange.note(name) as string}; stored`);
  }

  onData(slice: Buffer): void {
    if (this.#pending === undefined) return;
    this.#bytes += slice.length;
    if (this.#bytes > this.#policy.maxBodyBytes) {
      this.#pending = undefined;
      this.#slices = new KeptSlices();
    } else this.#slices.push(Buffer.from(slice));
  }

  onEnd(): void {
    if (this.#pending !== undefined) this.#store.keep(this.#uri, { ...this.#pending, body: Buffer.concat(this.#slices.slices) }, this.#policy.maxBytes);
  }
}

/** What changes a resource makes what is kept of it wrong (RFC 9111 section 4.4). */
class Invalidation implements ResponseObserver {
  readonly #store: ResponseStore;
  readonly #uri: string;

  constructor(store: ResponseStore, uri: string) {
    this.#store = store;
    this.#uri = uri;
  }

  onHead(head: ResponseHead): void {
    if (head.status >= 200 && head.status < 400) this.#store.forget(this.#uri);
  }

  onData(): void {}
  onEnd(): void {}
}
