import type { X509Certificate } from 'node:crypto';
import { formatDurationMs } from './duration.ts';

/** Clocks of the mesh may differ by so much. */
export const clockToleranceMs = 60_000;

export interface CertificateTimeOptions {
  /** `the certificate of spiffe://...`. */
  readonly whose: string;
  /** `the clock of the control plane`. */
  readonly clock: string;
  readonly nowMs: number;
  readonly toleranceMs?: number | undefined;
}

/** Why a certificate is not in its time: whose certificate, since when, and by whose clock. undefined: it is. */
export function timeProblem(certificate: Pick<X509Certificate, 'validFrom' | 'validTo'>, options: CertificateTimeOptions): string | undefined {
  const { whose, clock, nowMs, toleranceMs = clockToleranceMs } = options;
  const from = Date.parse(certificate.validFrom);
  const to = Date.parse(certificate.validTo);
  if (to + toleranceMs < nowMs) return `${whose} has expired on ${iso(to)}: ${clockSays(clock, nowMs, to)}`;
  if (from - toleranceMs > nowMs) return `${whose} is not valid before ${iso(from)}: ${clockSays(clock, nowMs, from)}. Set the clock that is wrong`;
  return undefined;
}

/** `the clock of the control plane says 2026-11-30T12:00:00Z, 1h later`. */
export function clockSays(clock: string, nowMs: number, thanMs: number): string {
  return `${clock} says ${iso(nowMs)}, ${formatDurationMs(Math.abs(nowMs - thanMs))} ${nowMs < thanMs ? 'earlier' : 'later'}`;
}

const iso = (ms: number) => new Date(ms).toISOString().replace(/\.\d+Z$/, 'Z');
