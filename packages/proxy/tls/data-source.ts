import { readFileSync } from 'node:fs';
import { rootCertificates } from 'node:tls';
import { MizzenError, messageOf } from '@mizzen/common';
import type { DataSource } from '@mizzen/envoy-api/gen/envoy/config/core/v3/base_pb.js';

export function readDataSource(source: DataSource | undefined, place: string): string {
  if (source?.specifier.case === 'inlineString') return source.specifier.value;
  if (source?.specifier.case === 'filename' && source.specifier.value === 'system') return rootCertificates.join('\n');
  return readBytes(source, place).toString('utf8');
}

export function readBytes(source: DataSource | undefined, place: string): Buffer {
  switch (source?.specifier.case) {
    case 'inlineBytes':
      return Buffer.from(source.specifier.value);
    case 'inlineString':
      return Buffer.from(source.specifier.value);
    case 'filename':
      try {
        return readFileSync(source.specifier.value);
      } catch (error) {
        throw new MizzenError('unreadable-file', `${place}: ${messageOf(error)}`, source.specifier.value);
      }
    default:
      throw new MizzenError('unsupported-data-source', `${place}: a data source of type ${source?.specifier.case ?? '(none)'} is not supported`);
  }
}
