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
