import type { X509Certificate } from 'node:crypto';
import { formatDurationMs } from './duration.ts';

/** Clocks of the mesh may differ by so much. */
export const clockToleranceMs = 60_000;

/**
 * The mesh's certificates are valid from an hour before they are issued, and a minute more: a verifier whose clock is an hour behind the authority's accepts
 * them. A short-lived one is valid from as long before as it lives.
 */
export const backdateMs = 3_660_000;

/** From when a certificate is valid that is issued now. */
export function validFromMs(nowMs: number, lifeMs: number): number {
  return nowMs - Math.max(clockToleranceMs, Math.min(backdateMs, lifeMs));
}

/** When a certificate of the mesh was issued, by its dates. */
export function issuedAtMs({ validFrom, validTo }: Pick<X509Certificate, 'validFrom' | 'validTo'>): number {
  const [from, to] = [Date.parse(validFrom), Date.parse(validTo)];
  return from + Math.max(clockToleranceMs, Math.min(backdateMs, (to - from) / 2));
}

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
