import { readFileSync } from 'node:fs';
import https from 'node:https';
import { findKind, groupOf } from '@mizzen/api';
import { homeFiles } from '@mizzen/control';
import { parseAllDocuments } from 'yaml';
import type { TestMesh } from './mesh.ts';

export interface Written {
  readonly status: number;
  readonly message: string;
  readonly warnings: readonly string[];
}

/** Applies one object through the API server, as kubectl does, and returns what its writer sees. */
export async function write(mesh: TestMesh, yaml: string): Promise<Written> {
  const value = parseAllDocuments(yaml).map(
    (document) => document.toJS() as { apiVersion: string; kind: string; metadata: { name: string; namespace?: string } },
  )[0]!;
  const kind = findKind(groupOf(value.apiVersion), value.kind)!;
  const prefix = kind.group === '' ? '/api/v1' : `/apis/${value.apiVersion}`;
  const namespace = kind.isNamespaced ? `/namespaces/${value.metadata.namespace ?? 'default'}` : '';
  return new Promise((resolve, reject) => {
    const request = https.request(
      {
        ...{ host: '127.0.0.1', port: mesh.plane.apiPort, ca: readFileSync(homeFiles(mesh.home).rootCertificate), method: 'PATCH', agent: false },
        path: `${prefix}${namespace}/${kind.plural}/${value.metadata.name}?fieldManager=test&force=true`,
        headers: {
          authorization: `Bearer ${readFileSync(homeFiles(mesh.home).adminToken, 'utf8').trim()}`,
          'content-type': 'application/apply-patch+yaml',
        },
      },
      (response) => {
        let body = '';
        response.setEncoding('utf8');
        response.on('data', (chunk: string) => (body += chunk));
        response.on('end', () => {
          const { message = '' } = JSON.parse(body || '{}') as { message?: string };
          resolve({ status: response.statusCode ?? 0, message, warnings: response.headersDistinct['warning'] ?? [] });
        });
      },
    );
    request.on('error', reject);
    request.end(JSON.stringify(value));
  });
}

/** Reads a path of the API server as an admin. */
export async function get(mesh: TestMesh, path: string): Promise<string> {
  return new Promise((resolve, reject) => {
    https
      .get(
        {
          ...{ host: '127.0.0.1', port: mesh.plane.apiPort, path, ca: readFileSync(homeFiles(mesh.home).rootCertificate), agent: false },
          headers: { authorization: `Bearer ${readFileSync(homeFiles(mesh.home).adminToken, 'utf8').trim()}` },
        },
        (response) => {
          let body = '';
          response.setEncoding('utf8');
          response.on('data', (chunk: string) => (body += chunk));
          response.on('end', () => resolve(body));
        },
      )
      .on('error', reject);
  });
}
