// Takes out of generated code what nothing reads at run time: Envoy's files say in options how they are validated and versioned, which is much of each descriptor, and is read at each start.
import { readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fromBinary, toBinary } from '@bufbuild/protobuf';
import { base64Decode, base64Encode } from '@bufbuild/protobuf/wire';
import { FileDescriptorProtoSchema } from '@bufbuild/protobuf/wkt';

/** Extensions of options that are read, by number: udpa.annotations.sensitive, by which secrets are left out of what is shown. */
const keptOptions = new Set([76_569_463]);
/** Files that only declare options. */
const annotations = /^file_(validate_validate|(udpa|envoy)_annotations_\w+|xds_annotations_v3_\w+)$/;
const nested = ['messageType', 'nestedType', 'field', 'oneofDecl', 'enumType', 'value', 'service', 'method', 'extension'];

/** Works on the files of a folder that protoc-gen-es has written, and lets them call our own `fileDesc` (packages/envoy-api/file-desc.ts). */
export function slimDescriptors(folder) {
  for (const name of readdirSync(folder, { recursive: true, encoding: 'utf8' })) {
    if (!name.endsWith('_pb.js')) continue;
    const file = join(folder, name);
    const text = readFileSync(file, 'utf8');
    const dropped = new Set();
    let found = 0;
    const changed = text.replace(/fileDesc\("([^"]*)"(?:, \[([^\]]*)\])?\)/, (_, descriptor, imports = '') => {
      found++;
      const kept = imports.split(', ').filter((each) => {
        if (annotations.test(each)) dropped.add(each);
        return each !== '' && !dropped.has(each);
      });
      return `fileDesc("${slimmed(descriptor)}", [${kept.join(', ')}])`;
    });
    if (found !== 1) throw new Error(`${name} is not written as expected: it holds ${found} descriptors`);
    const lines = changed.split('\n').flatMap((line) => {
      const [, names, from] = /^import \{ (.*) \} from ("@bufbuild\/protobuf\/codegenv2"|"[^"]*_pb\.js");$/.exec(line) ?? [];
      if (names === undefined) return [line];
      const kept = names.split(', ').filter((each) => each !== 'fileDesc' && !dropped.has(each));
      return [
        ...(kept.length > 0 ? [`import { ${kept.join(', ')} } from ${from};`] : []),
        ...(names.includes('fileDesc') ? ['import { fileDesc } from "@mizzen/envoy-api/file-desc.ts";'] : []),
      ];
    });
    writeFileSync(file, lines.join('\n'));
  }
}

function slimmed(text) {
  const descriptor = fromBinary(FileDescriptorProtoSchema, base64Decode(text));
  // Of a file as such: names of packages of other languages.
  descriptor.options = undefined;
  slim(descriptor);
  return base64Encode(toBinary(FileDescriptorProtoSchema, descriptor), 'std_raw');
}

function slim(descriptor) {
  if (descriptor.options !== undefined) {
    descriptor.options.$unknown = descriptor.options.$unknown?.filter(({ no }) => keptOptions.has(no));
    const saysNothing = ([key, value]) => key === '$typeName' || value === undefined || (Array.isArray(value) && value.length === 0);
    if (Object.entries(descriptor.options).every(saysNothing)) descriptor.options = undefined;
  }
  for (const list of nested) for (const inner of descriptor[list] ?? []) slim(inner);
}
