import { MizzenError } from '@mizzen/common';
import { durationToMs, unpackAny } from '@mizzen/envoy-api';
import type { AccessLog as AccessLogMessage } from '@mizzen/envoy-api/gen/envoy/config/accesslog/v3/accesslog_pb.js';
import { TrafficDirection } from '@mizzen/envoy-api/gen/envoy/config/core/v3/base_pb.js';
import {
  type Http1ProtocolOptions_HeaderKeyFormat,
  Http1ProtocolOptionsSchema,
  HttpProtocolOptions_HeadersWithUnderscoresAction as UnderscoresAction,
} from '@mizzen/envoy-api/gen/envoy/config/core/v3/protocol_pb.js';
import type { Listener as ListenerMessage } from '@mizzen/envoy-api/gen/envoy/config/listener/v3/listener_pb.js';
import { FileAccessLogSchema } from '@mizzen/envoy-api/gen/envoy/extensions/access_loggers/file/v3/file_pb.js';
import {
  HttpConnectionManager_ForwardClientCertDetails as CertDetails,
  HttpConnectionManager_CodecType as CodecType,
  HttpConnectionManager_PathWithEscapedSlashesAction as EscapedSlashes,
  type HttpConnectionManager,
  HttpConnectionManagerSchema,
} from '@mizzen/envoy-api/gen/envoy/extensions/filters/network/http_connection_manager/v3/http_connection_manager_pb.js';
import { OwnedHeadersSchema } from '@mizzen/envoy-api/gen/mizzen/http/v1/filters_pb.js';
import type { HttpFilter } from '../filters/filter.ts';
import { filterKindOf } from '../filters/filter-kinds.ts';
import { unpackConfig } from '../filters/unpack-config.ts';
import type { ConnectionSettings } from '../http/connection-settings.ts';
import { defaultHeadLimits, type HeadLimits } from '../message/head-limits.ts';
import type { HeaderCase } from '../message/header-case.ts';
import { OwnedHeaderRules } from '../message/owned-headers.ts';
import { compileRouteTable } from '../route/compile-routes.ts';
import type { PathSettings } from '../route/normalize-path.ts';
import type { RouteTable } from '../route/route-table.ts';
import { type AccessLog, compileAccessLogFormat, defaultAccessLogFormat } from '../telemetry/access-log.ts';
import { compileTracer } from '../telemetry/tracing/compile-tracer.ts';
import { isWithheld, refuseUnsupported, supportedFields } from '../xds/supported-fields.ts';
import { compileHttp2Options } from './compile-http2-options.ts';
import type { ListenerEnvironment, ListenerNeeds } from './compile-listener.ts';

const minuteMs = 60_000;

const supportedOfManager = supportedFields(HttpConnectionManagerSchema, [
  ...[
    'http2ProtocolOptions',
    'codecType',
    'statPrefix',
    'rds',
    'routeConfig',
    'httpFilters',
    'accessLog',
    'upgradeConfigs',
    'commonHttpProtocolOptions',
    'httpProtocolOptions',
  ],
  ...[
    'tracing',
    'maxRequestHeadersKb',
    'streamIdleTimeout',
    'requestTimeout',
    'requestHeadersTimeout',
    'delayedCloseTimeout',
    'drainTimeout',
    'proxy100Continue',
  ],
  ...['useRemoteAddress', 'forwardClientCertDetails', 'setCurrentClientCertDetails'],
  ...['preserveExternalRequestId', 'alwaysSetRequestIdInResponse', 'generateRequestId', 'normalizePath', 'mergeSlashes', 'pathWithEscapedSlashesAction'],
]);
/** Trailers, absolute forms, HTTP/1.0 and methods of one's own are always taken. */
const supportedOfHttp1 = supportedFields(Http1ProtocolOptionsSchema, [
  'headerKeyFormat',
  'acceptHttp10',
  'enableTrailers',
  'allowCustomMethods',
  'useBalsaParser',
  'allowAbsoluteUrl',
]);

/** What cannot be switched off, or on, is refused when somebody tries. */
function refuseWhatIsFixed(manager: HttpConnectionManager, place: string): void {
  refuseUnsupported(HttpConnectionManagerSchema, manager, supportedOfManager, place);
  refuseUnsupported(Http1ProtocolOptionsSchema, manager.httpProtocolOptions, supportedOfHttp1, place);
  const fixed: readonly (readonly [boolean, string])[] = [
    [manager.codecType === CodecType.HTTP3, 'codec_type HTTP3 is not spoken: AUTO, HTTP1 or HTTP2'],
    [manager.generateRequestId === false, 'generate_request_id cannot be switched off'],
    [manager.normalizePath === false, 'normalize_path cannot be switched off'],
    [manager.httpProtocolOptions?.allowAbsoluteUrl === false, 'allow_absolute_url cannot be switched off'],
  ];
  for (const [isAsked, problem] of fixed) if (isAsked) throw new MizzenError('unsupported-field', `${place}: ${problem}`);
}

/** Compiles an HTTP connection manager; adds what it takes by name to `needs`. */
export function compileConnectionManager(
  manager: HttpConnectionManager,
  listener: ListenerMessage,
  isTls: boolean,
  place: string,
  environment: ListenerEnvironment,
  needs: ListenerNeeds,
): ConnectionSettings {
  refuseWhatIsFixed(manager, place);
  const inbound = listener.trafficDirection === TrafficDirection.INBOUND;
  const certDetails = {
    [CertDetails.SANITIZE]: 'sanitize',
    [CertDetails.FORWARD_ONLY]: 'forwardOnly',
    [CertDetails.ALWAYS_FORWARD_ONLY]: 'forwardOnly',
    [CertDetails.APPEND_FORWARD]: 'appendForward',
    [CertDetails.SANITIZE_SET]: 'sanitizeSet',
  } as const;
  const common = manager.commonHttpProtocolOptions;
  const upgrades = manager.upgradeConfigs.filter((upgrade) => upgrade.enabled ?? true);
  for (const upgrade of upgrades)
    if (upgrade.filters.length > 0) throw new MizzenError('unsupported-upgrade', `${place}: filters of an upgrade_config are not supported`);
  const filters = compileFilters(manager, place, environment);
  const headLimits: HeadLimits = {
    ...defaultHeadLimits,
    ...(manager.maxRequestHeadersKb ? { maxHeadBytes: manager.maxRequestHeadersKb * 1024 } : {}),
    ...(common?.maxHeadersCount ? { maxHeaderCount: common.maxHeadersCount } : {}),
    underscores:
      common?.headersWithUnderscoresAction === UnderscoresAction.REJECT_REQUEST
        ? 'reject'
        : common?.headersWithUnderscoresAction === UnderscoresAction.DROP_HEADER
          ? 'drop'
          : 'allow',
  };
  return {
    context: environment.context,
    direction: inbound ? 'inbound' : manager.useRemoteAddress === true ? 'gateway' : 'outbound',
    isFromApplication: listener.trafficDirection === TrafficDirection.OUTBOUND && manager.useRemoteAddress !== true,
    isTls,
    routeTable: compileRoutes(manager, place, environment, needs),
    filters,
    // An answer meets the filters in the opposite order.
    responseFilters: filters.filter((filter) => filter.onResponse !== undefined).reverse(),
    accessLogs: compileAccessLogs(manager.accessLog, place, environment),
    tracer: compileTracer(manager.tracing, inbound ? 'inbound' : manager.useRemoteAddress === true ? 'gateway' : 'outbound', place, environment.context),
    ownedHeaders: compileOwnedHeaders(manager, place),
    forwardClientCert: certDetails[manager.forwardClientCertDetails] ?? 'sanitize',
    usesRemoteAddress: manager.useRemoteAddress ?? false,
    preservesRequestId: manager.preserveExternalRequestId,
    setsRequestIdInResponse: manager.alwaysSetRequestIdInResponse,
    codec: manager.codecType === CodecType.HTTP1 ? 'http1' : manager.codecType === CodecType.HTTP2 ? 'http2' : 'auto',
    http2: compileHttp2Options(manager.http2ProtocolOptions, headLimits, place),
    headLimits,
    paths: compilePaths(manager),
    headerCase: compileHeaderCase(manager.httpProtocolOptions?.headerKeyFormat, place),
    upgrades: new Set(upgrades.map((upgrade) => upgrade.upgradeType.toLowerCase())),
    passesContinue: manager.proxy100Continue,
    maxRequestsPerConnection: common?.maxRequestsPerConnection ?? 0,
    requestHeadersTimeoutMs: durationToMs(manager.requestHeadersTimeout) ?? minuteMs,
    requestTimeoutMs: durationToMs(manager.requestTimeout) ?? 0,
    idleTimeoutMs: durationToMs(common?.idleTimeout) ?? 60 * minuteMs,
    streamIdleTimeoutMs: durationToMs(manager.streamIdleTimeout) ?? 5 * minuteMs,
    maxStreamDurationMs: durationToMs(common?.maxStreamDuration) ?? 0,
    maxConnectionDurationMs: durationToMs(common?.maxConnectionDuration) ?? 0,
    delayedCloseTimeoutMs: durationToMs(manager.delayedCloseTimeout) ?? 1_000,
  };
}

function compilePaths({ mergeSlashes, pathWithEscapedSlashesAction: action }: HttpConnectionManager): PathSettings | undefined {
  const escapedSlashes = (
    {
      [EscapedSlashes.REJECT_REQUEST]: 'reject',
      [EscapedSlashes.UNESCAPE_AND_FORWARD]: 'unescape',
      [EscapedSlashes.UNESCAPE_AND_REDIRECT]: 'redirect',
      [EscapedSlashes.KEEP_UNCHANGED]: 'keep',
      [EscapedSlashes.IMPLEMENTATION_SPECIFIC_DEFAULT]: 'keep',
    } as const
  )[action];
  return mergeSlashes || escapedSlashes !== 'keep' ? { mergesSlashes: mergeSlashes, escapedSlashes } : undefined;
}

/** Names are sent on as they came unless a format is asked for (Envoy's own default is lower case). */
export function compileHeaderCase(format: Http1ProtocolOptions_HeaderKeyFormat | undefined, place: string): HeaderCase {
  switch (format?.headerFormat.case) {
    case undefined:
      return 'preserve';
    case 'properCaseWords':
      return 'proper';
    case 'statefulFormatter': {
      const { name } = format.headerFormat.value;
      if (name === 'preserve_case' || name === 'envoy.http.stateful_header_formatters.preserve_case') return 'preserve';
      if (name === 'mizzen.header_formatters.lower_case') return 'lower';
      throw new MizzenError(
        'unsupported-header-format',
        `${place}: the header formatter ${name} is not known: preserve_case or mizzen.header_formatters.lower_case`,
      );
    }
  }
}

function compileRoutes(manager: HttpConnectionManager, place: string, environment: ListenerEnvironment, needs: ListenerNeeds): () => RouteTable | undefined {
  switch (manager.routeSpecifier.case) {
    case 'routeConfig': {
      const table = compileRouteTable(manager.routeSpecifier.value);
      needs.genericSecretNames.push(...table.secretNames);
      return () => table;
    }
    case 'rds': {
      const name = manager.routeSpecifier.value.routeConfigName;
      needs.routeNames.push(name);
      return () => environment.routeTable(name);
    }
    default:
      throw new MizzenError('unsupported-routes', `${place}: routes must come inline or by RDS`);
  }
}

export function compileAccessLogs(logs: readonly AccessLogMessage[], place: string, environment: ListenerEnvironment): AccessLog[] {
  return logs.map((log) => {
    const file = unpackAny(FileAccessLogSchema, log.configType.case === 'typedConfig' ? log.configType.value : undefined);
    if (!file) throw new MizzenError('unsupported-access-log', `${place}: the access logger ${log.name} is not supported`);
    const source =
      file.accessLogFormat.case === 'logFormat' && file.accessLogFormat.value.format.case === 'textFormatSource'
        ? file.accessLogFormat.value.format.value.specifier
        : undefined;
    const text = file.accessLogFormat.case === 'format' ? file.accessLogFormat.value : source?.case === 'inlineString' ? source.value : defaultAccessLogFormat;
    return { file: environment.accessLog(file.path), format: compileAccessLogFormat(text) };
  });
}

const ownedHeadersFilter = 'mizzen.filters.http.owned_headers';

/** It has no turn among the filters: they must already find what may be believed. */
function compileOwnedHeaders(manager: HttpConnectionManager, place: string): OwnedHeaderRules | undefined {
  const filter = manager.httpFilters.find(({ name }) => name === ownedHeadersFilter);
  if (filter === undefined) return undefined;
  const any = filter.configType.case === 'typedConfig' ? filter.configType.value : undefined;
  const { gateways, authenticators, messengers, claimHeaders } = unpackConfig(OwnedHeadersSchema, any, `${place}, ${ownedHeadersFilter}`);
  return new OwnedHeaderRules(gateways, authenticators, messengers, claimHeaders);
}

function compileFilters(manager: HttpConnectionManager, place: string, environment: ListenerEnvironment): HttpFilter[] {
  const filters: HttpFilter[] = [];
  // A filter that is there twice has two places: what it keeps is found by it.
  const placeOf = (name: string, at: number) => {
    const before = manager.httpFilters.slice(0, at).filter((other) => other.name === name).length;
    return `${place}, ${name}${before === 0 ? '' : ` (${before + 1})`}`;
  };
  for (const [i, filter] of manager.httpFilters.entries()) {
    const isLast = i === manager.httpFilters.length - 1;
    const config = filter.configType.case === 'typedConfig' ? filter.configType.value : undefined;
    const kind = isWithheld(filter.name) ? undefined : filterKindOf(filter.name, config);
    if (filter.name === 'envoy.filters.http.router') {
      if (!isLast) throw new MizzenError('invalid-filters', `${place}: the router must be the last HTTP filter`);
    } else if (filter.name === ownedHeadersFilter && !isLast) continue;
    else if (isLast) throw new MizzenError('invalid-filters', `${place}: the last HTTP filter must be the router`);
    else if (kind !== undefined) filters.push(kind.create(config, placeOf(filter.name, i), environment.context, filter.name));
    else if (!filter.isOptional) throw new MizzenError('unsupported-filter', `${place}: the HTTP filter ${filter.name} is not supported`);
  }
  return filters;
}
