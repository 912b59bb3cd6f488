import { http } from '@mizzen/common';
import { verifiedValue } from '../message/header-bytes.ts';

/** `200 OK`, with a phrase for codes that have none registered. */
export function statusLine(status: number, reason?: string): string {
  return `HTTP/1.1 ${status} ${(reason && verifiedValue(reason)) || http.STATUS_CODES[status] || 'Unknown'}\r\n`;
}
