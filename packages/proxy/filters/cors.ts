import type { Exchange } from '../http/exchange.ts';
import { utf8Bytes } from '../message/header-bytes.ts';
import { ResponseHead } from '../message/response-head.ts';
import type { CorsPolicy } from '../route/route.ts';
import type { HttpFilter } from './filter.ts';

/**
 * envoy.filters.http.cors: says to browsers which pages of other origins may call a route (WHATWG Fetch, "HTTP CORS protocol"). Preflights
 * of origins that may are answered here; what the server says about it itself is replaced.
 */
export const corsFilter: HttpFilter = {
  name: 'envoy.filters.http.cors',
  onRequest(exchange) {
    const policy = policyOf(exchange);
    if (policy === undefined) return 'continue';
    const { head } = exchange;
    const origin = head.headers.get('origin');
    if (origin === undefined || head.method !== 'OPTIONS' || !head.headers.get('access-control-request-method')) return 'continue';
    const isAllowed = policy.allowsOrigin(origin);
    if (!isAllowed && policy.forwardsUnmatchedPreflights) return 'continue';
    const answer = headOf(200);
    for (const [name, value] of isAllowed ? policy.preflightFields : policy.refusalFields) answer.headers.add(name, value);
    if (isAllowed) for (const [asked, granted] of policy.echoedFields) answer.headers.add(granted, head.headers.getJoined(asked) ?? '');
    // The rest is added on the way back, as to any answer.
    exchange.replyHead(answer, isAllowed ? 'cors_preflight' : 'cors_origin_not_allowed');
    return 'stop';
  },
  onResponse(exchange, { headers }) {
    const policy = policyOf(exchange);
    if (policy === undefined) return;
    // A cache between must not give one origin's answer to another, nor an answer without these fields (WHATWG Fetch, "CORS protocol and HTTP caches").
    const vary = headers.getJoined('vary');
    if (vary === undefined) headers.set('vary', 'Origin');
    else if (!/(?:^|,)\s*(?:\*|origin)\s*(?:,|$)/i.test(vary)) headers.set('vary', `${vary}, Origin`);
    const origin = exchange.requestHeader('origin');
    if (origin === undefined || !policy.allowsOrigin(origin)) return;
    headers.set('access-control-allow-origin', origin);
    for (const [name, value] of policy.answerFields) headers.set(name, value);
  },
};

/** What a route answers itself is nobody's resource to share. */
const policyOf = ({ route }: Exchange) => (route?.action.kind === 'forward' ? route.cors : undefined);

function headOf(status: number): ResponseHead {
  const head = new ResponseHead();
  head.status = status;
  head.contentLength = 0;
  head.headers.add('content-length', '0');
  return head;
}

/** The fields that a policy adds, made once. */
export function corsFields(policy: {
  readonly allowMethods: string;
  readonly allowHeaders: string;
  readonly exposeHeaders: string;
  readonly maxAge: string;
  readonly allowsCredentials: boolean;
}): Pick<CorsPolicy, 'preflightFields' | 'refusalFields' | 'answerFields' | 'echoedFields'> {
  const some = (fields: readonly (readonly [string, string])[]) =>
    fields.filter(([, value]) => value !== '').map(([name, value]) => [name, utf8Bytes(value)] as const);
  const credentials = ['access-control-allow-credentials', policy.allowsCredentials ? 'true' : ''] as const;
  // With credentials, browsers take `*` for a method or header of that name (WHATWG Fetch, "CORS protocol and credentials"): what was asked for is granted.
  const isWildcard = (list: string) => policy.allowsCredentials && list.split(',').some((one) => one.trim() === '*');
  const granted = [
    ['access-control-request-method', 'access-control-allow-methods', policy.allowMethods],
    ['access-control-request-headers', 'access-control-allow-headers', policy.allowHeaders],
  ] as const;
  const preflightFields = some([
    ...granted.flatMap(([, name, list]) => (isWildcard(list) ? [] : [[name, list] as const])),
    ['access-control-max-age', policy.maxAge],
  ]);
  return {
    echoedFields: granted.flatMap(([asked, name, list]) => (isWildcard(list) ? [[asked, name] as const] : [])),
    preflightFields,
    // Without the origin they allow nothing; Envoy says them all the same.
    refusalFields: [...preflightFields, ...some([credentials])],
    answerFields: some([credentials, ['access-control-expose-headers', policy.exposeHeaders]]),
  };
}
