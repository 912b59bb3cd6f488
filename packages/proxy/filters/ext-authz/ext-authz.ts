import { MizzenError } from '@mizzen/common';
import { durationToTimerMs } from '@mizzen/envoy-api';
import {
  AuthorizationRequestSchema,
  AuthorizationResponseSchema,
  type ExtAuthz,
  ExtAuthzSchema,
  HttpServiceSchema,
} from '@mizzen/envoy-api/gen/envoy/extensions/filters/http/ext_authz/v3/ext_authz_pb.js';
import type { ListStringMatcher } from '@mizzen/envoy-api/gen/envoy/type/matcher/v3/string_pb.js';
import type { ProxyContext } from '../../http/connection-settings.ts';
import type { Exchange } from '../../http/exchange.ts';
import { isHeaderName, isHeaderValue } from '../../message/header-bytes.ts';
import type { HeaderList } from '../../message/header-list.ts';
import { isFinalStatus, type ResponseHead } from '../../message/response-head.ts';
import { compileStringMatcher } from '../../route/matchers.ts';
import { compileMetadataMatcher } from '../../route/metadata-matcher.ts';
import { changedQuery } from '../../route/query.ts';
import { refuseUnsupported, supportedFields } from '../../xds/supported-fields.ts';
import { type FilterKind, type HttpFilter, isPersonalNote } from '../filter.ts';
import { unpackConfig } from '../unpack-config.ts';
import { checkByGrpc, checkByHttp, type Decision, type FieldChange, type HeaderChoice, type HttpRules, type ToldBody } from './check.ts';

const name = 'envoy.filters.http.ext_authz';
const supported = supportedFields(ExtAuthzSchema, [
  ...['grpcService', 'httpService', 'transportApiVersion', 'failureModeAllow', 'failureModeAllowHeaderAdd', 'withRequestBody', 'clearRouteCache'],
  ...['statusOnError', 'filterEnabledMetadata', 'allowedHeaders', 'disallowedHeaders', 'statPrefix'],
]);
const failureAllowedHeader = 'x-envoy-auth-failure-mode-allowed';
const defaultTimeoutMs = 200;

/** envoy.filters.http.ext_authz: somebody else decides whether a request may pass. */
export const extAuthz: FilterKind = {
  name,
  create(any, place, context) {
    const config = unpackConfig(ExtAuthzSchema, any, place);
    refuseUnsupported(ExtAuthzSchema, config, supported, place);
    return new ExtAuthzFilter(config, place, context);
  },
};

type Ask = (exchange: Exchange, body: ToldBody | undefined, done: (decision: Decision) => void) => void;

class ExtAuthzFilter implements HttpFilter {
  readonly name = name;
  readonly #config: ExtAuthz;
  readonly #context: ProxyContext;
  readonly #ask: Ask;
  readonly #isAsked: ((exchange: Exchange) => boolean) | undefined;

  constructor(config: ExtAuthz, place: string, context: ProxyContext) {
    this.#config = config;
    this.#context = context;
    this.#ask = compileAsk(config, place, context);
    this.#isAsked = config.filterEnabledMetadata && compileMetadataMatcher(config.filterEnabledMetadata, place);
  }

  onRequest(exchange: Exchange): 'continue' | 'stop' {
    if (this.#isAsked?.(exchange) === false) return 'continue';
    // A decision that is there at once does not stop the request.
    let isWaiting = false;
    let isPassed = false;
    const decided = (decision: Decision) => {
      if (exchange.isOver || !this.#settle(exchange, decision)) return;
      if (isWaiting) exchange.resumeFilters();
      else isPassed = true;
    };
    const body = this.#config.withRequestBody;
    if (body === undefined || !exchange.head.hasBody) this.#ask(exchange, undefined, exchange.later(decided));
    else
      exchange.collectRequest(
        body.maxRequestBytes,
        (bytes) => this.#ask(exchange, { bytes, isPartial: !exchange.isRequestComplete, asBytes: body.packAsBytes }, exchange.later(decided)),
        body.allowPartialMessage,
      );
    isWaiting = true;
    return isPassed ? 'continue' : 'stop';
  }

  onResponse(exchange: Exchange, head: ResponseHead): void {
    const changes = exchange.note(name) as readonly FieldChange[] | undefined;
    if (changes !== undefined) apply(head.headers, changes);
  }

  /** True: it may pass. */
  #settle(exchange: Exchange, decision: Decision): boolean {
    const { counters, logger } = this.#context;
    const { failureModeAllow, failureModeAllowHeaderAdd, statusOnError, clearRouteCache } = this.#config;
    counters.count(`external_authorization_total{result="${decision.kind === 'error' && failureModeAllow ? 'failure_allowed' : decision.kind}"}`);
    const { headers } = exchange.head;
    switch (decision.kind) {
      case 'error':
        logger.debug('an external authorization could not be had', { reason: decision.detail });
        if (failureModeAllow) {
          if (failureModeAllowHeaderAdd) headers.set(failureAllowedHeader, 'true');
          return true;
        }
        exchange.addFlag('UAEX');
        exchange.replyWith(isFinalStatus(statusOnError?.code ?? 0) ? (statusOnError?.code ?? 403) : 403, '', 'ext_authz_error', []);
        return false;
      case 'denied':
        exchange.addFlag('UAEX');
        exchange.replyContent(
          decision.status,
          decision.body,
          decision.fields.find(([field]) => field === 'content-type')?.[1] ?? (decision.body.length > 0 ? 'text/plain' : ''),
          'ext_authz_denied',
          decision.fields.filter(([field]) => field !== 'content-type' && isHeaderName(field) && !framing.has(field)),
        );
        return false;
      case 'allowed':
        for (const field of decision.removes) if (!field.startsWith(':') && !framing.has(field)) headers.remove(field);
        // What the service says of this caller may be what the answer depends on.
        if (decision.request.length + decision.querySets.length > 0) exchange.setNote(isPersonalNote, true);
        apply(headers, decision.request);
        if (decision.querySets.length + decision.queryRemoves.length > 0)
          exchange.retarget(changedQuery(exchange.head.target, decision.querySets, decision.queryRemoves));
        if (decision.response.length > 0) exchange.setNote(name, decision.response);
        if (decision.metadata !== undefined) exchange.addMetadata(name, decision.metadata);
        if (clearRouteCache && decision.request.length + decision.removes.length + decision.querySets.length + decision.queryRemoves.length > 0)
          exchange.clearRoute();
        return true;
    }
  }
}

/** The service cannot change framing and pseudo-headers, nor set a value that is not one. */
function apply(headers: HeaderList, changes: readonly FieldChange[]): void {
  for (const { name: field, value, action } of changes) {
    if (!isHeaderName(field) || framing.has(field) || !isHeaderValue(value)) continue;
    if (action === 'add') headers.add(field, value);
    else if (action === 'append') {
      // Only to what the request has.
      const before = headers.getJoined(field);
      if (before !== undefined) headers.set(field, `${before},${value}`);
    } else if (action === 'set' || headers.has(field) === (action === 'setIfExists')) headers.set(field, value);
  }
}

const framing = new Set(['host', 'content-length', 'transfer-encoding', 'connection', 'upgrade', 'te', 'trailer', 'keep-alive', 'proxy-connection']);

function compileAsk(config: ExtAuthz, place: string, context: ProxyContext): Ask {
  const { services } = config;
  const isTold = choiceOf(config.allowedHeaders);
  const isHidden = choiceOf(config.disallowedHeaders);
  const unavailable: Decision = { kind: 'error', detail: 'the cluster of the authorization service is not known' };
  switch (services.case) {
    case 'grpcService': {
      const { targetSpecifier: target, timeout } = services.value;
      if (target.case !== 'envoyGrpc') throw new MizzenError('unsupported-filter', `${place}: grpc_service needs envoy_grpc`);
      const { clusterName, authority } = target.value;
      const timeoutMs = durationToTimerMs(timeout) ?? defaultTimeoutMs;
      return (exchange, body, done) => {
        const cluster = context.findCluster(clusterName);
        if (cluster === undefined) return done(unavailable);
        checkByGrpc(
          cluster,
          authority || clusterName,
          timeoutMs,
          exchange,
          (header) => (isTold === undefined || isTold(header)) && isHidden?.(header) !== true,
          body,
          done,
        );
      };
    }
    case 'httpService': {
      const service = services.value;
      refuseUnsupported(HttpServiceSchema, service, new Set(['serverUri', 'pathPrefix', 'authorizationRequest', 'authorizationResponse']), place);
      refuseUnsupported(AuthorizationRequestSchema, service.authorizationRequest, new Set(['allowedHeaders', 'headersToAdd']), place);
      refuseUnsupported(
        AuthorizationResponseSchema,
        service.authorizationResponse,
        new Set(['allowedUpstreamHeaders', 'allowedUpstreamHeadersToAppend', 'allowedClientHeaders', 'allowedClientHeadersOnSuccess']),
        place,
      );
      const clusterName = service.serverUri?.httpUpstreamType.case === 'cluster' ? service.serverUri.httpUpstreamType.value : '';
      const timeoutMs = durationToTimerMs(service.serverUri?.timeout) ?? defaultTimeoutMs;
      const own = choiceOf(service.authorizationRequest?.allowedHeaders);
      const nothing = () => false;
      const rules: HttpRules = {
        service,
        isTold: (header) => (isTold?.(header) === true || own?.(header) === true) && isHidden?.(header) !== true,
        toService: choiceOf(service.authorizationResponse?.allowedUpstreamHeaders) ?? nothing,
        toServiceAppended: choiceOf(service.authorizationResponse?.allowedUpstreamHeadersToAppend) ?? nothing,
        toClientDenied: choiceOf(service.authorizationResponse?.allowedClientHeaders),
        toClientAllowed: choiceOf(service.authorizationResponse?.allowedClientHeadersOnSuccess) ?? nothing,
      };
      return (exchange, body, done) => {
        const cluster = context.findCluster(clusterName);
        if (cluster === undefined) return done(unavailable);
        checkByHttp(cluster, timeoutMs, rules, exchange, body, done);
      };
    }
    default:
      throw new MizzenError('invalid-filter', `${place}: whom to ask is missing: grpc_service or http_service`);
  }
}

function choiceOf(list: ListStringMatcher | undefined): HeaderChoice | undefined {
  if (list === undefined || list.patterns.length === 0) return undefined;
  const all = list.patterns.map(compileStringMatcher);
  return (header) => all.some((fits) => fits(header));
}
