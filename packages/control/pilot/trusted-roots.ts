import { messageOf } from '@mizzen/common';
import { certificatesIn } from '../citadel/spiffe-bundle.ts';

/** Why a text cannot be used as the roots that certificates are verified against; undefined: it can. */
export function problemOfRoots(pem: unknown): string | undefined {
  try {
    const roots = certificatesIn(String(pem ?? ''));
    if (roots.length === 0) return 'must hold certificates in PEM form';
    return roots.every(({ ca }) => ca) ? undefined : "holds a certificate that is not an authority's (CA:TRUE is missing)";
  } catch (error) {
    return `holds a certificate that cannot be read: ${messageOf(error)}`;
  }
}
