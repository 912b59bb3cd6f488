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
    const policy = exchange.route?.cors;
    if (policy === undefined) return 'continue';
    const { head } = exchange;
    const origin = head.headers.get('origin');
    if (origin === undefined || head.method !== 'OPTIONS' || !head.headers.get('access-control-request-method')) return 'continue';
    if (!policy.allowsOrigin(origin)) {
      if (policy.forwardsUnmatchedPreflights) return 'continue';
      exchange.replyHead(headOf(200), 'cors_origin_not_allowed');
      return 'stop';
    }
    const answer = headOf(200);
    for (const [name, value] of policy.preflightFields) answer.headers.add(name, value);
    // The rest is added on the way back, as to any answer.
    exchange.replyHead(answer, 'cors_preflight');
    return 'stop';
  },
  onResponse(exchange, { headers }) {
    const policy = exchange.route?.cors;
    if (policy === undefined) return;
    const origin = exchange.requestHeader('origin');
    if (origin === undefined || !policy.allowsOrigin(origin)) return;
    headers.set('access-control-allow-origin', origin);
    for (const [name, value] of policy.answerFields) headers.set(name, value);
  },
};

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
}): Pick<CorsPolicy, 'preflightFields' | 'answerFields'> {
  const some = (fields: readonly (readonly [string, string])[]) => fields.filter(([, value]) => value !== '');
  return {
    preflightFields: some([
      ['access-control-allow-methods', policy.allowMethods],
      ['access-control-allow-headers', policy.allowHeaders],
      ['access-control-max-age', policy.maxAge],
    ]),
    answerFields: some([
      ['access-control-allow-credentials', policy.allowsCredentials ? 'true' : ''],
      ['access-control-expose-headers', policy.exposeHeaders],
    ]),
  };
}
