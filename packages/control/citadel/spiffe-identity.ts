import { parseSpiffeId } from '@mizzen/common';

/** The identity of a workload: a service account of a namespace in a trust domain, written as a SPIFFE URI. */
export interface Identity {
  readonly trustDomain: string;
  readonly namespace: string;
  readonly serviceAccount: string;
}

export const defaultTrustDomain = 'cluster.local';

/** `spiffe://cluster.local/ns/default/sa/reviews`. */
export function spiffeUri(identity: Identity): string {
  return `spiffe://${identity.trustDomain}/ns/${identity.namespace}/sa/${identity.serviceAccount}`;
}

const namePattern = /^[a-z0-9.-]+$/;

/** The identity in a SPIFFE URI, or undefined when it is not of the mesh's form. */
export function parseSpiffeUri(uri: string): Identity | undefined {
  const id = parseSpiffeId(uri);
  const [ns, namespace = '', sa, serviceAccount = ''] = id?.segments ?? [];
  if (id?.segments.length !== 4 || ns !== 'ns' || sa !== 'sa' || !namePattern.test(namespace) || !namePattern.test(serviceAccount)) return undefined;
  return { trustDomain: id.trustDomain, namespace, serviceAccount };
}
