/** RFC 9113 section 7. */
export const errorCodes = {
  NO_ERROR: 0x0,
  PROTOCOL_ERROR: 0x1,
  INTERNAL_ERROR: 0x2,
  FLOW_CONTROL_ERROR: 0x3,
  SETTINGS_TIMEOUT: 0x4,
  STREAM_CLOSED: 0x5,
  FRAME_SIZE_ERROR: 0x6,
  REFUSED_STREAM: 0x7,
  CANCEL: 0x8,
  COMPRESSION_ERROR: 0x9,
  CONNECT_ERROR: 0xa,
  ENHANCE_YOUR_CALM: 0xb,
  INADEQUATE_SECURITY: 0xc,
  HTTP_1_1_REQUIRED: 0xd,
} as const;
export type ErrorCode = (typeof errorCodes)[keyof typeof errorCodes];

/** What a peer did that HTTP/2 does not allow. A value, not an exception: peers can cause it at will. */
export interface Http2Violation {
  readonly code: ErrorCode;
  /** Counted by this name. */
  readonly reason: string;
  /** The stream that ends; 0: the connection does (RFC 9113 section 5.4). */
  readonly streamId: number;
}
