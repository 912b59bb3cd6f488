import { MizzenError } from '@mizzen/common';
import { durationToMs } from '@mizzen/envoy-api';
import { type Http2ProtocolOptions, Http2ProtocolOptionsSchema, KeepaliveSettingsSchema } from '@mizzen/envoy-api/gen/envoy/config/core/v3/protocol_pb.js';
import { defaultDefences, defaultHttp2Settings, type Http2Settings } from '../http2/settings.ts';
import type { HeadLimits } from '../message/head-limits.ts';
import { refuseUnsupported, supportedFields } from '../xds/supported-fields.ts';

/** Extended CONNECT is always taken. `override_stream_error_on_invalid_http_message` is how it is: what is malformed ends its stream. */
const supported = supportedFields(Http2ProtocolOptionsSchema, [
  ...['hpackTableSize', 'maxConcurrentStreams', 'initialStreamWindowSize', 'initialConnectionWindowSize', 'allowConnect'],
  ...['maxOutboundControlFrames', 'maxConsecutiveInboundFramesWithEmptyPayload', 'maxInboundPriorityFramesPerStream'],
  ...['maxInboundWindowUpdateFramesPerDataFrameSent', 'overrideStreamErrorOnInvalidHttpMessage', 'connectionKeepalive'],
]);

/** core protocol.proto `Http2ProtocolOptions`. */
export function compileHttp2Options(options: Http2ProtocolOptions | undefined, headLimits: HeadLimits, place: string, maxStreams?: number): Http2Settings {
  const base = { ...defaultHttp2Settings, ...(maxStreams === undefined ? {} : { maxConcurrentStreams: maxStreams }), headLimits };
  if (options === undefined) return base;
  refuseUnsupported(Http2ProtocolOptionsSchema, options, supported, place);
  const { connectionKeepalive: keepalive } = options;
  if (keepalive) refuseUnsupported(KeepaliveSettingsSchema, keepalive, new Set(['interval', 'timeout']), place);
  const windowBytes = (name: string, value: number | undefined, otherwise: number) => {
    if (value !== undefined && (value < 65_535 || value > 0x7fff_ffff))
      throw new MizzenError('invalid-http2-options', `${place}: ${name} must be from 65535 to 2147483647, not ${value}`);
    return value ?? otherwise;
  };
  return {
    ...base,
    maxConcurrentStreams: options.maxConcurrentStreams ?? base.maxConcurrentStreams,
    streamWindowBytes: windowBytes('initial_stream_window_size', options.initialStreamWindowSize, base.streamWindowBytes),
    connectionWindowBytes: windowBytes('initial_connection_window_size', options.initialConnectionWindowSize, base.connectionWindowBytes),
    headerTableBytes: Math.min(options.hpackTableSize ?? base.headerTableBytes, 64 * 1024),
    keepaliveIntervalMs: durationToMs(keepalive?.interval) ?? 0,
    keepaliveTimeoutMs: durationToMs(keepalive?.timeout) ?? 0,
    defences: {
      ...defaultDefences,
      maxQueuedControlFrames: options.maxOutboundControlFrames ?? defaultDefences.maxQueuedControlFrames,
      maxEmptyFrames: options.maxConsecutiveInboundFramesWithEmptyPayload ?? defaultDefences.maxEmptyFrames,
      maxPriorityFramesPerStream: options.maxInboundPriorityFramesPerStream ?? defaultDefences.maxPriorityFramesPerStream,
      maxWindowUpdatesPerDataFrame: options.maxInboundWindowUpdateFramesPerDataFrameSent ?? defaultDefences.maxWindowUpdatesPerDataFrame,
    },
  };
}
