import { readFileSync, realpathSync, statSync } from 'node:fs';
import { dirname, isAbsolute, relative, resolve, sep } from 'node:path';
import type { DocumentSpec } from '@mizzen/api';
import { MizzenError, messageOf } from '@mizzen/common';

const maxDocumentBytes = 10 * 1024 * 1024;
/** Where code lies that APIs may name. */
const filterFolder = 'filters';

/** What a resource refers to, found: files beside it, and ConfigMaps. */
export class DocumentReader {
  readonly #root: string | undefined;
  readonly #configMaps: ReadonlyMap<string, Readonly<Record<string, string>>>;

  /** Files are only read within `root`, the folder that the control plane follows: whoever may write resources may not thereby read the machine. */
  constructor(root: string | undefined, configMaps: ReadonlyMap<string, Readonly<Record<string, string>>>) {
    this.#root = root;
    this.#configMaps = configMaps;
  }

  /** The whole path of a file that a resource names. Throws MizzenError. */
  fileOf(file: string, originFile: string | undefined): string {
    if (this.#root === undefined)
      throw new MizzenError('no-files', `the file ${JSON.stringify(file)} cannot be read: this control plane follows no folder (--dir). Use a ConfigMap.`);
    const path = resolve(originFile === undefined ? this.#root : dirname(resolve(originFile)), file);
    const outside = () => new MizzenError('file-outside', `the file ${JSON.stringify(file)} is outside of the folder that the control plane follows`);
    const root = realpathSync(this.#root);
    // Before it is looked for: what there is elsewhere is nobody's to find out.
    if (!isInside(resolve(this.#root), path) && !isInside(root, path)) throw outside();
    let real: string;
    try {
      real = realpathSync(path);
    } catch {
      throw new MizzenError('no-file', `the file ${path} does not exist`);
    }
    // A link may lead out.
    if (!isInside(root, real)) throw outside();
    return real;
  }

  /**
   * The whole path of a filter that a resource names. A filter is code: of the followed folder, only files below a folder named `filters` are
   * loaded, so that a right to write Apis is not a right to run any module that lies there. Throws MizzenError.
   */
  filterOf(file: string, originFile: string | undefined): string {
    const path = this.fileOf(file, originFile);
    // By its real path: a link inside `filters` does not make another file a filter.
    const folders = relative(realpathSync(this.#root!), dirname(path)).split(sep);
    if (!folders.includes(filterFolder))
      throw new MizzenError(
        'file-outside',
        `the file ${JSON.stringify(file)} is not a filter: it must be below a folder named ${filterFolder} of the folder that the control plane follows`,
      );
    return path;
  }

  /** The content of a document. Throws MizzenError. */
  read(spec: DocumentSpec, namespace: string, originFile: string | undefined): Buffer {
    if (spec.configMap !== undefined) {
      const { name, key } = spec.configMap;
      const value = this.#configMaps.get(`${namespace}/${name}`)?.[key];
      if (value === undefined)
        throw new MizzenError('no-config-map', `the ConfigMap ${namespace}/${name} does not exist, or has no key ${JSON.stringify(key)}`);
      return Buffer.from(value);
    }
    const path = this.fileOf(spec.file!, originFile);
    try {
      if (statSync(path).size > maxDocumentBytes) throw new MizzenError('file-too-large', `the file ${path} is larger than ${maxDocumentBytes} bytes`);
      return readFileSync(path);
    } catch (error) {
      throw new MizzenError('no-file', `the file ${path} cannot be read: ${messageOf(error)}`);
    }
  }
}

function isInside(folder: string, path: string): boolean {
  const way = relative(folder, path);
  return way !== '' && !way.startsWith('..') && !isAbsolute(way);
}
