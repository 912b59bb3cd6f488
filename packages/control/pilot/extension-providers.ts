import { isPlainObject } from '@mizzen/api';
import { type MizzenError, parseDurationMs } from '@mizzen/common';

/** Services outside of the mesh's own parts that its settings name (istio/api mesh config.proto `ExtensionProvider`). */
export interface ExtensionProviders {
  readonly tracing: readonly TracingProvider[];
  readonly authorization: readonly AuthorizationProvider[];
}

/** `extensionProviders[].opentelemetry` (istio/api mesh config.proto): where spans are sent, by OTLP. */
export interface TracingProvider {
  readonly name: string;
  readonly service: string;
  readonly port: number;
  /** undefined: gRPC. */
  readonly http: { readonly path: string; readonly timeoutMs: number; readonly headers: Readonly<Record<string, string>> } | undefined;
}

/** `extensionProviders[].envoyExtAuthzHttp`, `envoyExtAuthzGrpc`: who decides about requests by the action CUSTOM. */
export interface AuthorizationProvider {
  readonly name: string;
  readonly service: string;
  readonly port: number;
  readonly timeoutMs: number;
  /** Without an answer, requests pass. */
  readonly failsOpen: boolean;
  readonly clearsRoute: boolean;
  readonly statusOnError: number | undefined;
  readonly body: { readonly maxBytes: number; readonly allowsPart: boolean; readonly asBytes: boolean } | undefined;
  /** undefined: gRPC. */
  readonly http:
    | {
        readonly pathPrefix: string;
        /** `*` at the beginning or end. */
        readonly toldHeaders: readonly string[];
        readonly addedHeaders: Readonly<Record<string, string>>;
        readonly toService: readonly string[];
        readonly toClientOnDeny: readonly string[];
        readonly toClientOnAllow: readonly string[];
      }
    | undefined;
}

/** What is wrong with a field of the mesh's settings. */
export type Wrong = (field: string, problem: string) => MizzenError;

export function readProviders(value: unknown, wrong: Wrong): ExtensionProviders {
  const tracing: TracingProvider[] = [];
  const authorization: AuthorizationProvider[] = [];
  if (value !== undefined && !Array.isArray(value)) throw wrong('extensionProviders', 'must be a list');
  const names = new Set<string>();
  for (const [i, entry] of ((value ?? []) as unknown[]).entries()) {
    const place = `extensionProviders[${i}]`;
    if (!isPlainObject(entry) || typeof entry['name'] !== 'string' || entry['name'] === '') throw wrong(place, 'needs a name');
    const { name, opentelemetry, envoyExtAuthzHttp, envoyExtAuthzGrpc } = entry;
    if (names.has(name as string)) throw wrong(`${place}.name`, `there is another provider ${JSON.stringify(name)}`);
    names.add(name as string);
    // Providers of other kinds are for what nothing acts on.
    if (isPlainObject(opentelemetry)) tracing.push(tracingProvider(name as string, opentelemetry, `${place}.opentelemetry`, wrong));
    if (isPlainObject(envoyExtAuthzHttp))
      authorization.push(authorizationProvider(name as string, envoyExtAuthzHttp, true, `${place}.envoyExtAuthzHttp`, wrong));
    if (isPlainObject(envoyExtAuthzGrpc))
      authorization.push(authorizationProvider(name as string, envoyExtAuthzGrpc, false, `${place}.envoyExtAuthzGrpc`, wrong));
  }
  return { tracing, authorization };
}

type Given = Readonly<Record<string, unknown>>;

/** Istio writes NAMESPACE/HOST where there are several. */
function serviceOf({ service, port }: Given, place: string, wrong: Wrong): { readonly service: string; readonly port: number } {
  if (typeof service !== 'string' || service === '' || !Number.isInteger(port) || (port as number) < 1 || (port as number) > 65535)
    throw wrong(place, 'needs service and port');
  return { service: service.slice(service.indexOf('/') + 1), port: port as number };
}

function tracingProvider(name: string, given: Given, place: string, wrong: Wrong): TracingProvider {
  const { http } = given;
  const timeout = isPlainObject(http) && typeof http['timeout'] === 'string' ? parseDurationMs(http['timeout']) : undefined;
  const headers = isPlainObject(http) && Array.isArray(http['headers']) ? http['headers'].filter(isPlainObject) : [];
  return {
    name,
    ...serviceOf(given, place, wrong),
    http: isPlainObject(http)
      ? {
          path: typeof http['path'] === 'string' ? http['path'] : '/v1/traces',
          timeoutMs: timeout ?? 5_000,
          headers: Object.fromEntries(headers.map((header) => [String(header['name']), String(header['value'] ?? '')])),
        }
      : undefined,
  };
}

const defaultTimeoutMs = 600_000;

function authorizationProvider(name: string, given: Given, isHttp: boolean, place: string, wrong: Wrong): AuthorizationProvider {
  const text = (field: string) => (typeof given[field] === 'string' ? given[field] : undefined);
  const list = (field: string) => {
    const values = given[field] ?? [];
    if (!Array.isArray(values) || !values.every((one): one is string => typeof one === 'string' && one !== ''))
      throw wrong(`${place}.${field}`, 'must be a list of names of headers');
    if (values.includes('*')) throw wrong(`${place}.${field}`, '"*" alone is not taken: name the headers, as x-* if they have something in common');
    return values;
  };
  const timeout = text('timeout');
  const timeoutMs = timeout === undefined ? defaultTimeoutMs : parseDurationMs(timeout);
  if (timeoutMs === undefined) throw wrong(`${place}.timeout`, `${JSON.stringify(timeout)} is no duration`);
  const status = text('statusOnError');
  if (status !== undefined && !/^[2-5]\d\d$/.test(status)) throw wrong(`${place}.statusOnError`, `${JSON.stringify(status)} is no status`);
  const pathPrefix = text('pathPrefix') ?? '';
  if (pathPrefix !== '' && !pathPrefix.startsWith('/')) throw wrong(`${place}.pathPrefix`, 'must begin with /');
  const body = given['includeRequestBodyInCheck'];
  const added = given['includeAdditionalHeadersInCheck'];
  const told = list('includeRequestHeadersInCheck');
  return {
    name,
    ...serviceOf(given, place, wrong),
    timeoutMs,
    failsOpen: given['failOpen'] === true,
    clearsRoute: given['clearRouteCache'] === true,
    statusOnError: status === undefined ? undefined : Number(status),
    body: isPlainObject(body)
      ? {
          maxBytes: typeof body['maxRequestBytes'] === 'number' ? body['maxRequestBytes'] : 0,
          allowsPart: body['allowPartialMessage'] === true,
          asBytes: body['packAsBytes'] === true,
        }
      : undefined,
    http: isHttp
      ? {
          pathPrefix,
          toldHeaders: told.length > 0 ? told : list('includeHeadersInCheck'),
          addedHeaders: isPlainObject(added) ? Object.fromEntries(Object.entries(added).map(([key, value]) => [key, String(value)])) : {},
          toService: list('headersToUpstreamOnAllow'),
          toClientOnDeny: list('headersToDownstreamOnDeny'),
          toClientOnAllow: list('headersToDownstreamOnAllow'),
        }
      : undefined,
  };
}
