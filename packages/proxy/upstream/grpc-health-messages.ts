/** The two messages of gRPC's health checks (grpc health.proto), each framed as gRPC frames messages. */

/** A HealthCheckRequest: field 1 is the service's name, '' the server as a whole. */
export function healthRequest(service: string): Buffer {
  const name = Buffer.from(service).subarray(0, 120);
  const message = name.length === 0 ? Buffer.alloc(0) : Buffer.concat([Buffer.from([0x0a, name.length]), name]);
  const head = Buffer.alloc(5);
  head.writeUInt32BE(message.length, 1);
  return Buffer.concat([head, message]);
}

/** HealthCheckResponse.ServingStatus. */
const servingStatuses = ['UNKNOWN', 'SERVING', 'NOT_SERVING', 'SERVICE_UNKNOWN'];

/** What a HealthCheckResponse says, whose one field is a small enumeration. */
export function servingStatus(content: Buffer): string {
  const message = content.subarray(5);
  return servingStatuses[message[0] === 0x08 ? (message[1] ?? 0) : 0] ?? 'UNKNOWN';
}
