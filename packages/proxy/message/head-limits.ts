/** Limits of a message head, with Envoy's defaults (http_connection_manager.proto: max_request_headers_kb; protocol.proto: max_headers_count). */
export interface HeadLimits {
  readonly maxHeadBytes: number;
  readonly maxHeaderCount: number;
  readonly maxTargetBytes: number;
  /** Field names with `_`, which some servers take for `-` (protocol.proto `headers_with_underscores_action`). */
  readonly underscores: 'allow' | 'drop' | 'reject';
}

export const defaultHeadLimits: HeadLimits = { maxHeadBytes: 60 * 1024, maxHeaderCount: 100, maxTargetBytes: 16 * 1024, underscores: 'allow' };
