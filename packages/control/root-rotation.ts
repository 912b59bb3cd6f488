import { MizzenError } from '@mizzen/common';
import type { CertificateAuthority, RootStatus, RotationPhase } from './citadel/certificate-authority.ts';
import type { ProxyStatus } from './pilot/xds/proxy-connection.ts';

export type RotationStep = 'prepare' | 'switch' | 'finish';

/** Where the authority and a change of its roots stand. */
export interface AuthorityStatus {
  readonly trustDomain: string;
  readonly phase: RotationPhase;
  readonly roots: readonly RootStatus[];
  readonly nextStep: RotationStep;
  /** Connected proxies that are not ready for the next step: they do not trust all roots yet, or hold a certificate of the root before. */
  readonly waitsFor: readonly string[];
}

const nextSteps: Readonly<Record<RotationPhase, RotationStep>> = { steady: 'prepare', prepared: 'switch', switched: 'finish' };

export function authorityStatus(authority: CertificateAuthority, proxies: readonly ProxyStatus[]): AuthorityStatus {
  const { phase, trustDomain, signingGeneration } = authority;
  const isReady = ({ types, certificateGeneration }: ProxyStatus) =>
    phase === 'steady' ||
    (phase === 'prepared'
      ? types['secret'] === undefined || types['secret'].state === 'synced'
      : certificateGeneration === undefined || certificateGeneration === signingGeneration);
  return {
    trustDomain,
    phase,
    roots: authority.roots(),
    nextStep: nextSteps[phase],
    waitsFor: proxies.filter((proxy) => !isReady(proxy)).map(({ namespace, name }) => `${namespace}/${name}`),
  };
}

/** Takes one step. `isForced`: also while proxies are not ready, which will then not be understood by others until they are. */
export async function takeStep(authority: CertificateAuthority, proxies: readonly ProxyStatus[], step: RotationStep, isForced: boolean): Promise<void> {
  const { nextStep, waitsFor, phase } = authorityStatus(authority, proxies);
  if (step !== nextStep) throw new MizzenError('wrong-phase', `the next step is ${nextStep}, not ${step}: the authority is ${phase}`);
  if (waitsFor.length > 0 && !isForced)
    throw new MizzenError(
      'not-ready',
      `${step} would cut proxies off that are not ready for it: ${waitsFor.slice(0, 10).join(', ')}${waitsFor.length > 10 ? ', ...' : ''}`,
    );
  if (step === 'prepare') await authority.prepare();
  else if (step === 'switch') await authority.switch();
  else await authority.finish();
}
