import type { HeaderList } from '../../message/header-list.ts';

/** Where a request stands in a trace, as its headers say: W3C Trace Context (traceparent, version 00) or Zipkin's B3 in both forms. */
export interface TraceContext {
  /** 32 hex digits. */
  readonly traceId: string;
  /** 16 hex digits: the caller's span. */
  readonly spanId: string;
  /** undefined: the caller has left it to us. */
  readonly isSampled: boolean | undefined;
  readonly form: 'w3c' | 'b3' | 'b3multi';
}

const traceparentPattern = /^([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?$/;
const b3Pattern = /^(?:([0-9a-f]{16}|[0-9a-f]{32})-([0-9a-f]{16})(?:-([01d])(?:-[0-9a-f]{16})?)?|([01d]))$/;
const zeroTrace = '0'.repeat(32);
const zeroSpan = '0'.repeat(16);

/** What cannot be read counts as absent: a new trace begins (W3C Trace Context section 3.2.2.3). */
export function readTraceContext(headers: HeaderList): TraceContext | undefined {
  const traceparent = headers.get('traceparent');
  if (traceparent !== undefined) {
    const match = traceparentPattern.exec(traceparent.trim());
    if (match === null || match[1] === 'ff' || (match[1] === '00' && match[5] !== undefined) || match[2] === zeroTrace || match[3] === zeroSpan)
      return undefined;
    return { traceId: match[2]!, spanId: match[3]!, isSampled: (Number.parseInt(match[4]!, 16) & 1) === 1, form: 'w3c' };
  }
  const b3 = headers.get('b3');
  if (b3 !== undefined) {
    const match = b3Pattern.exec(b3.trim().toLowerCase());
    if (match === null || match[1] === undefined) return undefined;
    return { traceId: match[1].padStart(32, '0'), spanId: match[2]!, isSampled: match[3] === undefined ? undefined : match[3] !== '0', form: 'b3' };
  }
  const traceId = headers.get('x-b3-traceid')?.toLowerCase();
  const spanId = headers.get('x-b3-spanid')?.toLowerCase();
  if (traceId === undefined || spanId === undefined || !/^(?:[0-9a-f]{16}|[0-9a-f]{32})$/.test(traceId) || !/^[0-9a-f]{16}$/.test(spanId)) return undefined;
  const sampled = headers.get('x-b3-sampled');
  return {
    traceId: traceId.padStart(32, '0'),
    spanId,
    isSampled: headers.get('x-b3-flags') === '1' ? true : sampled === undefined ? undefined : sampled === '1' || sampled.toLowerCase() === 'true',
    form: 'b3multi',
  };
}

/** Tells the next one whose span it is called from: always as traceparent, and as B3 to those who were called with it. */
export function writeTraceContext(headers: HeaderList, traceId: string, spanId: string, isSampled: boolean, form: TraceContext['form']): void {
  headers.setVerified('traceparent', `00-${traceId}-${spanId}-${isSampled ? '01' : '00'}`);
  if (form === 'b3') headers.setVerified('b3', `${traceId}-${spanId}-${isSampled ? '1' : '0'}`);
  else if (form === 'b3multi') {
    headers.setVerified('x-b3-traceid', traceId);
    headers.setVerified('x-b3-spanid', spanId);
    headers.setVerified('x-b3-sampled', isSampled ? '1' : '0');
    headers.remove('x-b3-parentspanid');
  }
}
