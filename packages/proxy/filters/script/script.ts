import { isAbsolute } from 'node:path';
import { MizzenError } from '@mizzen/common';
import { ScriptPerRouteSchema } from '@mizzen/envoy-api/gen/mizzen/http/v1/filters_pb.js';
import type { ProxyContext } from '../../http/connection-settings.ts';
import type { Exchange } from '../../http/exchange.ts';
import { unicodeText, utf8Bytes } from '../../message/header-bytes.ts';
import type { HeaderList } from '../../message/header-list.ts';
import { normalizeTarget } from '../../route/normalize-path.ts';
import type { FilterKind, HttpFilter } from '../filter.ts';
import { unpackConfig } from '../unpack-config.ts';
import { ScriptHost } from './script-host.ts';
import type { ScriptResult, SentRequest } from './script-messages.ts';

const name = 'mizzen.filters.http.script';
const defaultTimeoutMs = 1_000;
/** What frames a message is not a filter's to change. */
const fixedFields = new Set(['host', 'content-length', 'transfer-encoding', 'connection', 'te', 'trailer', 'upgrade', 'keep-alive', 'expect']);

interface Script {
  readonly file: string;
  readonly config: string;
  readonly timeoutMs: number;
}

/**
 * mizzen.filters.http.script: filters that users wrote (@mizzen/filter). Each runs in a process of its own. A call that throws, hangs or
 * ends that process fails its own request with 500 and is counted; other requests do not notice. Results are validated (./script-messages.ts).
 */
export const script: FilterKind = {
  name,
  create: (_any, _place, context) => new ScriptFilter(context),
  compileRoute: (any, place): readonly Script[] =>
    unpackConfig(ScriptPerRouteSchema, any, place).scripts.map(({ file, config, timeoutMs }) => {
      if (!isAbsolute(file)) throw new MizzenError('invalid-filter', `${place}: the file ${JSON.stringify(file)} must be named by its whole path`);
      return { file, config: config === undefined ? '' : JSON.stringify(config), timeoutMs: timeoutMs || defaultTimeoutMs };
    }),
};

/** One for each file, for all listeners. */
class ScriptHosts extends Map<string, ScriptHost> {
  close(): void {
    for (const host of this.values()) host.close();
  }
}

class ScriptFilter implements HttpFilter {
  readonly name = name;
  readonly #context: ProxyContext;
  readonly #hosts: ScriptHosts;

  constructor(context: ProxyContext) {
    this.#context = context;
    const kept = context.filterStates.get(name) as ScriptHosts | undefined;
    this.#hosts = kept ?? new ScriptHosts();
    context.filterStates.set(name, this.#hosts);
  }

  onRequest(exchange: Exchange): 'continue' | 'stop' {
    const scripts = exchange.filterConfig(name) as readonly Script[] | undefined;
    if (scripts === undefined || scripts.length === 0) return 'continue';
    exchange.holdResponse((head, release) => this.#onResponse(exchange, scripts, head, release));
    this.#next(exchange, scripts, 0);
    return 'stop';
  }

  #next(exchange: Exchange, scripts: readonly Script[], at: number): void {
    const current = scripts[at];
    if (current === undefined) return exchange.resumeFilters();
    const host = this.#hostOf(current.file);
    if (!host.takes('request')) return this.#nextLater(exchange, scripts, at + 1);
    const called = exchange.later((result: ScriptResult) => {
      if (result.kind === 'error') return this.#failed(exchange, current, result);
      if (result.kind === 'answer') {
        this.#context.counters.countRejection('script', String(result.status));
        const type = result.headers.find(([field]) => field === 'content-type')?.[1] ?? 'text/plain';
        return exchange.replyContent(
          result.status,
          Buffer.from(result.body),
          utf8Bytes(type),
          'script_answer',
          result.headers.filter(([field]) => field !== 'content-type' && !fixedFields.has(field)).map(([field, value]) => [field, utf8Bytes(value)] as const),
        );
      }
      if (result.path !== undefined) {
        const target = normalizeTarget(result.path);
        if (target === undefined) return this.#failed(exchange, current, { kind: 'error', message: `${JSON.stringify(result.path)} cannot be a path` });
        exchange.retarget(target);
      }
      if (result.headers !== undefined) replaceFields(exchange.head.headers, result.headers);
      this.#next(exchange, scripts, at + 1);
    });
    host.call({ phase: 'request', config: current.config, request: requestOf(exchange), response: undefined }, current.timeoutMs, called);
  }

  /** Not from within the loop over the filters. */
  #nextLater(exchange: Exchange, scripts: readonly Script[], at: number): void {
    setImmediate(exchange.later(() => this.#next(exchange, scripts, at)));
  }

  /** Answers meet the filters in the opposite order. */
  #onResponse(exchange: Exchange, scripts: readonly Script[], head: { status: number; line: string; readonly headers: HeaderList }, release: () => void): void {
    let at = scripts.length;
    const next = (): void => {
      const current = scripts[--at];
      if (current === undefined) return release();
      const host = this.#hostOf(current.file);
      if (!host.takes('response')) return next();
      const response = { status: head.status, headers: listOf(head.headers) };
      const called = exchange.later((result: ScriptResult) => {
        if (result.kind !== 'continue') return this.#failed(exchange, current, result);
        if (result.status !== undefined && result.status !== 204 && result.status !== 304) {
          head.status = result.status;
          head.line = '';
        }
        if (result.headers !== undefined) replaceFields(head.headers, result.headers);
        next();
      });
      host.call({ phase: 'response', config: current.config, request: requestOf(exchange), response }, current.timeoutMs, called);
    };
    next();
  }

  #failed(exchange: Exchange, current: Script, result: ScriptResult): void {
    const message = result.kind === 'error' ? result.message : 'it returned something else than was asked for';
    const file = current.file.slice(current.file.lastIndexOf('/') + 1);
    this.#context.counters.count(`script_failures_total{file="${file.replace(/[^\w.-]/g, '_')}"}`);
    this.#context.logger.warn(`the filter ${file} has failed a request: ${message}`, { requestId: exchange.head.headers.get('x-request-id') });
    exchange.replyProblem(500, { title: 'Internal Server Error', detail: `the filter ${file} has failed` }, 'script_failed');
  }

  #hostOf(file: string): ScriptHost {
    let host = this.#hosts.get(file);
    if (host === undefined) {
      host = new ScriptHost(file, this.#context.counters, this.#context.logger);
      this.#hosts.set(file, host);
    }
    return host;
  }
}

function listOf(headers: HeaderList): (readonly [string, string])[] {
  return headers.names.map((field, i) => [field, unicodeText(headers.valueAt(i))] as const);
}

function requestOf(exchange: Exchange): SentRequest {
  const { head } = exchange;
  return {
    method: head.method,
    path: head.target,
    authority: head.authority,
    headers: listOf(head.headers),
    remoteAddress: exchange.remoteAddress,
    consumer: exchange.consumer === undefined ? undefined : { ...exchange.consumer },
    principal: exchange.peerUri,
  };
}

function replaceFields(headers: HeaderList, fields: readonly (readonly [string, string])[]): void {
  const wanted = new Map<string, string[]>();
  for (const [field, value] of fields) if (!fixedFields.has(field)) wanted.set(field, [...(wanted.get(field) ?? []), value]);
  for (const field of new Set(headers.names)) {
    if (fixedFields.has(field)) continue;
    const values = wanted.get(field);
    const had = headers.names.flatMap((candidate, i) => (candidate === field ? [unicodeText(headers.valueAt(i))] : []));
    if (values !== undefined && values.length === had.length && values.every((value, i) => value === had[i])) wanted.delete(field);
    else headers.remove(field);
  }
  for (const [field, values] of wanted) for (const value of values) headers.add(field, utf8Bytes(value));
}
