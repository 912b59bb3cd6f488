import type { HeadLimits } from '../message/head-limits.ts';

/** What one side of a connection takes from the other (core protocol.proto `Http2ProtocolOptions`, by whose names and defaults it goes unless it says otherwise). */
export interface Http2Settings {
  /** `max_concurrent_streams`: streams that the peer may have open (server), or that we open at most on one connection (client). */
  readonly maxConcurrentStreams: number;
  /** `initial_stream_window_size`: what the peer may send on a stream before it has been read. */
  readonly streamWindowBytes: number;
  /** `initial_connection_window_size`: the same for all streams together. */
  readonly connectionWindowBytes: number;
  /** `hpack_table_size`. */
  readonly headerTableBytes: number;
  readonly headLimits: HeadLimits;
  /** `connection_keepalive.interval`: PING after this time without any frame of the peer; 0: never. */
  readonly keepaliveIntervalMs: number;
  /** `connection_keepalive.timeout`: the connection ends when a PING is not answered by then. */
  readonly keepaliveTimeoutMs: number;
  readonly defences: Http2Defences;
}

/** Limits on what costs us something and the peer nothing. Beyond them the connection ends with ENHANCE_YOUR_CALM. */
export interface Http2Defences {
  /** `max_outbound_control_frames`: answers (acknowledgements, RST_STREAM) that wait since the peer does not read them. */
  readonly maxQueuedControlFrames: number;
  /** `max_consecutive_inbound_frames_with_empty_payload`: DATA, HEADERS and CONTINUATION without content that do not end anything. */
  readonly maxEmptyFrames: number;
  /** `max_inbound_priority_frames_per_stream`. */
  readonly maxPriorityFramesPerStream: number;
  /** `max_inbound_window_update_frames_per_data_frame_sent`. */
  readonly maxWindowUpdatesPerDataFrame: number;
  /** CONTINUATION frames of one header block: small ones cost more than their bytes (none of Envoy's). */
  readonly maxContinuations: number;
  /** Entries of one SETTINGS frame, as nghttp2's `max_settings`: six settings exist, and each entry costs a pass over all streams at worst. */
  readonly maxSettingsEntries: number;
  /** SETTINGS and PING that may come at once, and how many more each second (none of Envoy's). */
  readonly controlFrameBurst: number;
  readonly controlFramesPerSecond: number;
  /** After so many streams, the connection ends when more than half of them were reset at once (`overload.premature_reset_total_stream_count`). */
  readonly prematureResetStreams: number;
  /** A stream that the peer resets before it is so old counts as reset at once (`overload.premature_reset_min_stream_lifetime_seconds`). */
  readonly prematureResetMs: number;
}

export const defaultDefences: Http2Defences = {
  maxQueuedControlFrames: 1_000,
  maxEmptyFrames: 1,
  maxPriorityFramesPerStream: 100,
  maxWindowUpdatesPerDataFrame: 10,
  maxContinuations: 64,
  maxSettingsEntries: 32,
  controlFrameBurst: 1_000,
  controlFramesPerSecond: 500,
  prematureResetStreams: 500,
  prematureResetMs: 1_000,
};

/** Streams that one connection of a client may have open (Envoy's is no limit by default; ours is the least that RFC 9113 recommends). */
const maxInboundStreams = 100;

export const defaultHttp2Settings: Omit<Http2Settings, 'headLimits'> = {
  maxConcurrentStreams: maxInboundStreams,
  streamWindowBytes: 256 * 1024,
  connectionWindowBytes: 1024 * 1024,
  headerTableBytes: 4096,
  keepaliveIntervalMs: 0,
  keepaliveTimeoutMs: 0,
  defences: defaultDefences,
};
