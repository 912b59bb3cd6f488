import { STATUS_CODES } from 'node:http';

/** `200 OK`, with a phrase for codes that have none registered. */
export function statusLine(status: number, reason?: string): string {
  return `HTTP/1.1 ${status} ${reason || STATUS_CODES[status] || 'Unknown'}\r\n`;
}
