import { createRegistry, fromJson } from '@bufbuild/protobuf';
import { MizzenError, messageOf } from '@mizzen/common';
import { unpackAny } from '@mizzen/envoy-api';
import {
  file_envoy_extensions_transport_sockets_tls_v3_secret,
  type Secret,
  SecretSchema,
} from '@mizzen/envoy-api/gen/envoy/extensions/transport_sockets/tls/v3/secret_pb.js';
import { DiscoveryResponseSchema } from '@mizzen/envoy-api/gen/envoy/service/discovery/v3/discovery_pb.js';
import { parse } from 'yaml';

/** The secrets in a file of SDS: a DiscoveryResponse with Secret resources, as JSON or YAML (Envoy docs, "SDS", "static files"). */
export function readSecretFile(text: string, path: string): Secret[] {
  const registry = createRegistry(file_envoy_extensions_transport_sockets_tls_v3_secret);
  try {
    const response = fromJson(DiscoveryResponseSchema, parse(text, { maxAliasCount: 0 }), { registry });
    return response.resources.map((any) => unpackAny(SecretSchema, any)).filter((secret) => secret !== undefined);
  } catch (error) {
    throw new MizzenError('invalid-secret', `the file is no list of secrets: ${messageOf(error)}`, path);
  }
}
