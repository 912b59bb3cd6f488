/**
 * What a peer did that HTTP/1.1 does not allow: a value, not an error, since peers may do anything. `status` is the answer to a request;
 * a response with a violation becomes 502.
 */
export interface Violation {
  readonly reason: string;
  readonly status: number;
}

const violation = (reason: string, status = 400): Violation => ({ reason, status });

/** Every reason, by its name in metrics and access logs (response code details). */
export const violations = {
  badRequestLine: violation('http1.bad_request_line'),
  badStatusLine: violation('http1.bad_status_line'),
  badHeaderLine: violation('http1.bad_header_line'),
  bareLineBreak: violation('http1.bare_line_break'),
  controlByte: violation('http1.control_byte'),
  obsoleteFolding: violation('http1.obsolete_folding'),
  spaceBeforeColon: violation('http1.space_before_colon'),
  headTooLarge: violation('http1.head_too_large', 431),
  tooManyHeaders: violation('http1.too_many_headers', 431),
  targetTooLong: violation('http1.target_too_long', 414),
  unsupportedVersion: violation('http1.unsupported_version', 505),
  badContentLength: violation('http1.bad_content_length'),
  repeatedContentLength: violation('http1.repeated_content_length'),
  lengthWithTransferEncoding: violation('http1.content_length_with_transfer_encoding'),
  badTransferEncoding: violation('http1.bad_transfer_encoding'),
  unsupportedTransferEncoding: violation('http1.unsupported_transfer_encoding', 501),
  transferEncodingInHttp10: violation('http1.transfer_encoding_in_http_1_0'),
  missingHost: violation('http1.missing_host'),
  repeatedHost: violation('http1.repeated_host'),
  badHost: violation('http1.bad_host'),
  hostMismatch: violation('http1.host_differs_from_target'),
  badTarget: violation('http1.bad_target'),
  protectedConnectionOption: violation('http1.connection_names_protected_header'),
  methodNotSupported: violation('http1.method_not_supported', 501),
  badChunk: violation('http1.bad_chunk'),
  chunkExtensionTooLong: violation('http1.chunk_extension_too_long'),
  badTrailer: violation('http1.bad_trailer'),
  trailersTooLarge: violation('http1.trailers_too_large', 431),
  underscoreInName: violation('http1.underscore_in_header_name'),
  upgradeWithBody: violation('http1.upgrade_with_body'),
  unexpectedExpectation: violation('http1.unknown_expectation', 417),
} as const;
