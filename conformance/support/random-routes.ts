import { type Json, typed } from '../../e2e/support/engine.ts';
import type { Probe } from './envoy-pair.ts';

/** Numbers that are the same for the same seed (mulberry32). */
export class Random {
  #state: number;

  constructor(seed: number) {
    this.#state = seed;
  }

  next(): number {
    this.#state = (this.#state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(this.#state ^ (this.#state >>> 15), 1 | this.#state);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 4294967296;
  }

  is(share: number): boolean {
    return this.next() < share;
  }

  of<Item>(items: readonly Item[]): Item {
    return items[Math.floor(this.next() * items.length)]!;
  }

  some<Item>(items: readonly Item[], most: number): Item[] {
    return Array.from({ length: Math.floor(this.next() * (most + 1)) }, () => this.of(items));
  }
}

const segments = ['a', 'ab', 'b', 'B', 'api', 'v1', 'x.y', '%20', 'a+b'];
const words = ['one', 'two', 'One', '', '7', '42', '-3', 'a b', 'one,two'];
const headerNames = ['x-a', 'x-b', 'x-c'];
const parameters = ['p', 'q'];

const path = (random: Random) => `/${random.some(segments, random.of([1, 2, 3])).join('/')}${random.is(0.2) ? '/' : ''}`;

function stringMatch(random: Random): Json {
  const word = random.of(words);
  const ignoreCase = random.is(0.2) ? { ignore_case: true } : {};
  switch (random.of(['exact', 'prefix', 'suffix', 'contains', 'regex'])) {
    case 'exact':
      return { exact: word, ...ignoreCase };
    case 'prefix':
      return { prefix: word || 'o', ...ignoreCase };
    case 'suffix':
      return { suffix: word || 'o', ...ignoreCase };
    case 'contains':
      return { contains: word || 'o', ...ignoreCase };
    default:
      return { safe_regex: { regex: random.of(['o.*', '[0-9]+', '(one|two)', '.*', 'O?ne', '']) || 'one' } };
  }
}

function headerMatcher(random: Random): Json {
  const name = random.of([...headerNames, ...headerNames, ':method', ':path', ':authority']);
  const invert = random.is(0.25) ? { invert_match: true } : {};
  const missing = random.is(0.25) ? { treat_missing_header_as_empty: true } : {};
  if (random.is(0.15)) return { name, present_match: random.is(0.7), ...invert, ...missing };
  if (random.is(0.1)) return { name, range_match: { start: -5, end: 10 }, ...invert, ...missing };
  if (name === ':method') return { name, string_match: { exact: random.of(['GET', 'POST']) }, ...invert };
  return { name, string_match: stringMatch(random), ...invert, ...missing };
}

function match(random: Random): Json {
  const kind = random.of(['prefix', 'prefix', 'path', 'path_separated_prefix', 'safe_regex']);
  const text = path(random);
  const specifier: Json =
    kind === 'safe_regex'
      ? { safe_regex: { regex: random.of([`${text.replace(/[.+]/g, '\\$&')}.*`, '/[ab]+(/.*)?', '/api/v[0-9]', '.*']) } }
      : kind === 'path_separated_prefix'
        ? { path_separated_prefix: text === '/' ? '/a' : text.replace(/\/+$/, '') || '/a' }
        : { [kind]: text };
  return {
    ...specifier,
    ...(random.is(0.15) ? { case_sensitive: false } : {}),
    ...(random.is(0.4) ? { headers: [headerMatcher(random), ...(random.is(0.3) ? [headerMatcher(random)] : [])] } : {}),
    ...(random.is(0.2)
      ? { query_parameters: [{ name: random.of(parameters), ...(random.is(0.3) ? { present_match: random.is(0.7) } : { string_match: stringMatch(random) }) }] }
      : {}),
    ...(random.is(0.03) ? { grpc: {} } : {}),
  };
}

const actions = ['APPEND_IF_EXISTS_OR_ADD', 'ADD_IF_ABSENT', 'OVERWRITE_IF_EXISTS_OR_ADD', 'OVERWRITE_IF_EXISTS'];
const values = ['new', '%PROTOCOL%', 'from %REQ(x-a)%', '100%%', '%REQ(x-none)%'];

export function mutations(random: Random, share: number): Json {
  const option = (names: readonly string[]) => ({
    header: { key: random.of(names), value: random.of(values) },
    append_action: random.of(actions),
    ...(random.is(0.2) ? { keep_empty_value: true } : {}),
  });
  return {
    ...(random.is(share) ? { request_headers_to_add: [option(['x-a', 'x-b', 'x-new']), ...(random.is(0.4) ? [option(['x-a', 'x-new'])] : [])] } : {}),
    ...(random.is(share / 2) ? { request_headers_to_remove: random.some(['x-b', 'x-c', 'x-new'], 2) } : {}),
    ...(random.is(share) ? { response_headers_to_add: [option(['x-server', 'x-new', 'x-remove-me'])] } : {}),
    ...(random.is(share / 2) ? { response_headers_to_remove: ['x-remove-me'] } : {}),
  };
}

function redirect(random: Random): Json {
  return {
    ...(random.is(0.3) ? { host_redirect: random.of(['other.test', 'other.test:8443']) } : {}),
    ...(random.is(0.2) ? { port_redirect: 8080 } : {}),
    ...(random.is(0.3) ? random.of([{ https_redirect: true }, { scheme_redirect: 'https' }, { scheme_redirect: 'http' }]) : {}),
    ...random.of<Json>([
      {},
      { path_redirect: '/fixed' },
      { path_redirect: '/fixed?own=1' },
      { prefix_rewrite: '/new' },
      { prefix_rewrite: '/new/' },
      { regex_rewrite: { pattern: { regex: '/(a|b)' }, substitution: '/<\\1>' } },
    ]),
    ...(random.is(0.3) ? { strip_query: true } : {}),
    response_code: random.of(['MOVED_PERMANENTLY', 'FOUND', 'SEE_OTHER', 'TEMPORARY_REDIRECT', 'PERMANENT_REDIRECT']),
  };
}

/** One that does not wait: attempts follow one another at once. */
export function retryPolicy(random: Random): Json {
  return {
    retry_on: random
      .some(
        [
          '5xx',
          'gateway-error',
          'reset',
          'connect-failure',
          'retriable-4xx',
          'retriable-status-codes',
          'retriable-headers',
          'envoy-ratelimited',
          'refused-stream',
        ],
        3,
      )
      .concat('retriable-status-codes')
      .join(','),
    num_retries: random.of([1, 2, 3]),
    retriable_status_codes: random.some([404, 409, 429, 500, 503], 2),
    ...(random.is(0.2) ? { retriable_headers: [{ name: 'x-server', string_match: { exact: random.of(['test', 'none']) } }] } : {}),
    ...(random.is(0.15) ? { retriable_request_headers: [headerMatcher(random)] } : {}),
    retry_back_off: { base_interval: '0.001s', max_interval: '0.002s' },
  };
}

function forward(random: Random, clusters: readonly string[]): Json {
  const target: Json = random.is(0.75)
    ? { cluster: random.of(clusters) }
    : random.is(0.4)
      ? { cluster_header: 'x-cluster' }
      : {
          weighted_clusters: {
            clusters: [
              { name: random.of(clusters), weight: 100, ...mutations(random, 0.4), ...(random.is(0.2) ? { host_rewrite_literal: 'weighted.test' } : {}) },
              { name: random.of(clusters), weight: 0 },
            ],
          },
        };
  return {
    ...target,
    timeout: '10s',
    ...random.of<Json>([
      {},
      {},
      { prefix_rewrite: random.of(['/', '/new', '/new/']) },
      { regex_rewrite: { pattern: { regex: random.of(['/(a|b)', '^/([^/]*)/', '[0-9]']) }, substitution: random.of(['/<\\1>', '/x\\1y/', '/$1']) } },
    ]),
    ...random.of<Json>([
      {},
      {},
      {},
      { host_rewrite_literal: 'rewritten.test' },
      { host_rewrite_header: 'x-a' },
      { host_rewrite_path_regex: { pattern: { regex: '^/([a-z]+).*$' }, substitution: '\\1.test' } },
    ]),
    ...(random.is(0.2) ? { append_x_forwarded_host: true } : {}),
    ...(random.is(0.3) ? { retry_policy: retryPolicy(random) } : {}),
    ...(random.is(0.1) ? { cluster_not_found_response_code: random.of(['NOT_FOUND', 'SERVICE_UNAVAILABLE', 'INTERNAL_SERVER_ERROR']) } : {}),
    ...(random.is(0.15) ? { hash_policy: [{ header: { header_name: 'x-a' } }] } : {}),
  };
}

function filterConfigs(random: Random): Json {
  const configs: Record<string, Json> = {};
  if (random.is(0.08))
    configs['envoy.filters.http.fault'] = {
      '@type': 'type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault',
      ...(random.is(0.3) ? { delay: { fixed_delay: '0.01s', percentage: { numerator: 100 } } } : {}),
      abort: { ...(random.is(0.7) ? { http_status: random.of([403, 503]) } : { grpc_status: 14 }), percentage: { numerator: random.of([100, 0]) } },
      ...(random.is(0.3) ? { headers: [headerMatcher(random)] } : {}),
    };
  if (random.is(0.1))
    configs['envoy.filters.http.cors'] = {
      '@type': 'type.googleapis.com/envoy.extensions.filters.http.cors.v3.CorsPolicy',
      allow_origin_string_match: [
        random.of<Json>([{ exact: 'https://page.test' }, { prefix: 'https://' }, { safe_regex: { regex: 'https://[a-z]+\\.test' } }]),
      ],
      ...(random.is(0.7) ? { allow_methods: 'GET,POST' } : {}),
      ...(random.is(0.5) ? { allow_headers: 'x-a' } : {}),
      ...(random.is(0.5) ? { expose_headers: 'x-server' } : {}),
      ...(random.is(0.5) ? { max_age: '60' } : {}),
      ...(random.is(0.5) ? { allow_credentials: true } : {}),
      ...(random.is(0.4) ? { forward_not_matching_preflights: random.is(0.5) } : {}),
    };
  return Object.keys(configs).length === 0 ? {} : { typed_per_filter_config: configs };
}

function route(random: Random, clusters: readonly string[]): Json {
  const action: Json = random.is(0.72)
    ? { route: forward(random, clusters) }
    : random.is(0.6)
      ? { redirect: redirect(random) }
      : random.of<Json>([
          // With a body, Envoy sends what is no message of HTTP.
          { direct_response: { status: 204 } },
          { direct_response: { status: random.of([200, 404, 503]), ...(random.is(0.8) ? { body: { inline_string: 'said by the proxy' } } : {}) } },
        ]);
  return { match: match(random), ...action, ...mutations(random, 0.2), ...filterConfigs(random) };
}

/** A virtual host of its own domain, with up to `most` routes. */
export function virtualHost(random: Random, name: string, domains: readonly string[], clusters: readonly string[], most: number): Json {
  const count = 1 + Math.floor(random.next() * most);
  return {
    name,
    domains,
    routes: [
      ...Array.from({ length: count }, () => route(random, clusters)),
      // What nothing else fits goes somewhere, mostly.
      ...(random.is(0.8) ? [{ match: { prefix: '/' }, route: { ...forward(random, clusters) } }] : []),
    ],
    ...mutations(random, 0.15),
    ...(random.is(0.1) ? { retry_policy: retryPolicy(random) } : {}),
    ...(random.is(0.2) ? { include_request_attempt_count: true } : {}),
    ...(random.is(0.2) ? { include_attempt_count_in_response: true } : {}),
    ...(random.is(0.05) ? { require_tls: 'ALL' } : {}),
    ...filterConfigs(random),
  };
}

/** The filters that random routes speak to. */
export const routedFilters: readonly Json[] = [
  typed('envoy.filters.http.cors', 'extensions.filters.http.cors.v3.Cors'),
  typed('envoy.filters.http.fault', 'extensions.filters.http.fault.v3.HTTPFault'),
  typed('envoy.filters.http.router', 'extensions.filters.http.router.v3.Router'),
];

const answers = [
  '200',
  '200',
  '200',
  '404',
  '409',
  '429',
  '500',
  '503',
  'reset',
  '503,200',
  '500,503,200',
  'reset,200',
  '200,503',
  '429,429,429,200',
  'ratelimited,200',
];

export function probe(random: Random, host: string, clusters: readonly string[]): Probe {
  const isPreflight = random.is(0.06);
  const headers: Record<string, string | string[]> = { host: random.is(0.15) ? `${host}:80` : host };
  for (const name of headerNames) if (random.is(0.4)) headers[name] = random.is(0.15) ? [random.of(words), random.of(words)] : random.of(words);
  if (random.is(0.5)) headers['x-cluster'] = random.of([...clusters, 'nowhere']);
  if (random.is(0.5)) headers['x-answer'] = random.of(answers);
  if (random.is(0.15) || isPreflight) headers['origin'] = random.of(['https://page.test', 'http://other.test', 'https://a.b']);
  if (isPreflight) headers['access-control-request-method'] = 'GET';
  if (random.is(0.1)) headers['x-forwarded-host'] = 'before.test';
  const query = random.is(0.35) ? `?${random.some(['p=one', 'q=7', 'p=', 'q', 'p=One', 'p=a%20b', 'p=a+b', 'r=1', 'q=42&q=one'], 2).join('&')}` : '';
  const method = isPreflight ? 'OPTIONS' : random.of(['GET', 'GET', 'GET', 'POST', 'PUT', 'HEAD']);
  // gRPC is told by its method too here: others never are gRPC.
  if (method === 'POST' && random.is(0.3)) headers['content-type'] = 'application/grpc';
  return { method, path: `${path(random)}${query}`, headers };
}
