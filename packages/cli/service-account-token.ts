import { findKind } from '@mizzen/api';
import { ApiClient, ApiFailure, collectionPath } from './api-client.ts';
import { controlAccess } from './home.ts';

/** On the mesh's own machine no token has to be brought: the admin token makes one, and the service account where there is none yet. */
export async function ownToken(home: string, namespace: string, serviceAccount: string): Promise<string> {
  const api = new ApiClient(controlAccess(home));
  const kind = findKind('', 'ServiceAccount')!;
  try {
    if (serviceAccount !== 'default') {
      await api
        .call('POST', collectionPath(kind, namespace), { body: { apiVersion: 'v1', kind: 'ServiceAccount', metadata: { name: serviceAccount } } })
        .catch((error: unknown) => {
          if (!(error instanceof ApiFailure) || error.status !== 409) throw error;
        });
    }
    const answer = await api.call('POST', `${collectionPath(kind, namespace)}/${serviceAccount}/token`, {
      body: { apiVersion: 'authentication.k8s.io/v1', kind: 'TokenRequest', spec: { expirationSeconds: 24 * 3600 } },
    });
    return (answer.body as { status: { token: string } }).status.token;
  } finally {
    api.close();
  }
}

export interface WorkloadToBind {
  readonly name: string;
  readonly namespace: string;
  readonly serviceAccount: string;
  readonly labels: Readonly<Record<string, string>>;
  readonly isGateway?: boolean;
  /** CIDR ranges in which it may register, where it is not seen at its own address. */
  readonly addresses?: readonly string[];
}

const createdByAnnotation = 'mizzen.dev/created-by';

/**
 * The WorkloadGroup that allows a service account to be a workload: the control plane takes name, labels and kind of proxy from it, not from the proxy. One that
 * a person has written stays as it is. Resolves to whether it was made here.
 */
export async function bindWorkload(api: ApiClient, workload: WorkloadToBind, createdBy: string): Promise<boolean> {
  const kind = findKind('networking.istio.io', 'WorkloadGroup')!;
  const { name, namespace, serviceAccount, labels, isGateway = false, addresses = [] } = workload;
  const annotations = {
    [createdByAnnotation]: createdBy,
    ...(isGateway ? { 'mizzen.dev/gateway': 'true' } : {}),
    ...(addresses.length > 0 ? { 'mizzen.dev/addresses': addresses.join(',') } : {}),
  };
  const body = {
    apiVersion: 'networking.istio.io/v1',
    kind: kind.kind,
    metadata: { name, annotations },
    spec: { template: { serviceAccount, labels } },
  };
  const path = collectionPath(kind, namespace);
  try {
    await api.call('POST', path, { body });
    return true;
  } catch (error) {
    if (!(error instanceof ApiFailure) || error.status !== 409) throw error;
  }
  const existing = (await api.call('GET', `${path}/${name}`)).body as { metadata: { resourceVersion?: string; annotations?: Record<string, string> } };
  if (existing.metadata.annotations?.[createdByAnnotation] !== createdBy) return false;
  await api.call('PUT', `${path}/${name}`, { body: { ...body, metadata: { ...body.metadata, resourceVersion: existing.metadata.resourceVersion } } });
  return true;
}

export async function unbindWorkload(api: ApiClient, namespace: string, name: string): Promise<void> {
  await api.call('DELETE', `${collectionPath(findKind('networking.istio.io', 'WorkloadGroup')!, namespace)}/${name}`);
}
