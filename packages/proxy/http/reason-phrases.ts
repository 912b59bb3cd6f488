import { http } from '@mizzen/common';

/** `200 OK`, with a phrase for codes that have none registered. */
export function statusLine(status: number, reason?: string): string {
  return `HTTP/1.1 ${status} ${reason || http.STATUS_CODES[status] || 'Unknown'}\r\n`;
}
