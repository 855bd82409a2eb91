/**
 * `npm run deb`: the Debian package, undernet_VERSION_ARCHITECTURE.deb in dist/, with the bundle, its own Node and all that a service needs.
 *
 *   npm run deb -- [--arch amd64|arm64] [--out DIRECTORY] [--version VERSION] [--zstd]
 *
 * The same sources give the same bytes: times are those of the last commit (or SOURCE_DATE_EPOCH), owners and modes are said here. --zstd packs
 * in two seconds instead of fifty, for a package half as large again, which Debian 12 and later read.
 */
import { execFileSync } from 'node:child_process'
import { createHash } from 'node:crypto'
import {
  chmodSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join, relative, resolve } from 'node:path'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'
import { gzipSync } from 'node:zlib'
import type { Metafile } from 'esbuild'
import { commentedConfig } from '../agent/config/commented.ts'
import { SERVICE_CONFIG } from '../agent/config/paths.ts'
import { SERVICE_NAME, serviceUnit, sysusersConf } from '../agent/service/unit.ts'
import { YOUNG_HEAP_FLAG } from '../agent/young-heap.ts'
import manifest from '../package.json' with { type: 'json' }
import { bundle } from './build.ts'
import { manPage } from './deb/man-page.ts'
import { copyrightFile } from './deb/notices.ts'
import { type Architecture, librariesOf, putRuntime, type Runtime } from './deb/runtime.ts'
import { controlFile, maintainerScripts } from './deb/scripts.ts'

const root = fileURLToPath(new URL('..', import.meta.url))
const LIBRARY = '/usr/lib/undernet'
const LAUNCHER = '/usr/bin/agent'
/** Who answers for the package: whoever builds it says so as Debian's tools are told. */
const MAINTAINER = `${process.env.DEBFULLNAME ?? 'undernet'} <${process.env.DEBEMAIL ?? 'undernet@localhost'}>`
const ARCHITECTURES: readonly Architecture[] = ['amd64', 'arm64']
const OURS: Partial<Record<NodeJS.Architecture, Architecture>> = { x64: 'amd64', arm64: 'arm64' }
/** Where each shell looks for completions of packages. */
const COMPLETIONS = {
  bash: '/usr/share/bash-completion/completions/agent',
  zsh: '/usr/share/zsh/vendor-completions/_agent',
  fish: '/usr/share/fish/vendor_completions.d/agent.fish',
}
/** What dpkg-deb takes for each: the smallest, and the quickest. */
const PACKED = { xz: ['-Zxz', '-z6'], zstd: ['-Zzstd', '-z3'] } as const
const PACK_MS_MAX = 10 * 60_000

export type DebOptions = {
  architecture: Architecture
  /** Directory that the package is put into. */
  outdir: string
  version?: string
  packed?: keyof typeof PACKED
}

/** Resolves to the package's file. */
export async function buildDeb({
  architecture,
  outdir,
  version = manifest.version,
  packed = 'xz',
}: DebOptions): Promise<string> {
  const scratch = mkdtempSync(join(tmpdir(), 'undernet-deb-'))
  try {
    const stage = join(scratch, 'stage')
    const epoch = sourceDate()
    const library = join(stage, LIBRARY)
    mkdirSync(library, { recursive: true })
    const metafile = await bundle(library, { version })
    loadedOnly(join(library, 'main.js'))
    const runtime = putRuntime(architecture, library, scratch)
    write(stage, `${LIBRARY}/package.json`, `${JSON.stringify({ name: 'undernet', version, type: 'module' })}\n`)
    writeService(stage)
    writeDocuments(stage, { version, metafile, runtime, date: new Date(Number(epoch) * 1_000) })
    const libraries = librariesOf(runtime.native.map((file) => join(library, file)))
    writeControl(stage, { version, architecture, libraries })
    return pack(stage, join(outdir, `undernet_${version}_${architecture}.deb`), epoch, PACKED[packed])
  } finally {
    rmSync(scratch, { recursive: true, force: true })
  }
}

/** It is run by this package's Node, through the launcher, and not by another one that is found. */
function loadedOnly(main: string): void {
  writeFileSync(main, readFileSync(main, 'utf8').replace(/^#!.*\n/, ''))
  chmodSync(main, 0o644)
}

/** The launcher, the unit with its user, the first configuration. */
function writeService(stage: string): void {
  const node = `${LIBRARY}/node`
  // The daemon would replace itself by a Node with the flag.
  write(
    stage,
    LAUNCHER,
    `#!/bin/sh
if [ "$1" = start ]; then exec ${node} ${YOUNG_HEAP_FLAG} ${LIBRARY}/main.js "$@"; fi
exec ${node} ${LIBRARY}/main.js "$@"
`,
    0o755,
  )
  write(stage, `/usr/lib/systemd/system/${SERVICE_NAME}.service`, serviceUnit({ program: [LAUNCHER] }))
  write(stage, `/usr/lib/sysusers.d/${SERVICE_NAME}.conf`, sysusersConf())
  write(stage, SERVICE_CONFIG, commentedConfig())
}

type Documented = { version: string; metafile: Metafile; runtime: Runtime; date: Date }

function writeDocuments(stage: string, { version, metafile, runtime, date }: Documented): void {
  const doc = '/usr/share/doc/undernet'
  for (const [shell, place] of Object.entries(COMPLETIONS)) {
    const main = join(stage, LIBRARY, 'main.js')
    write(stage, place, execFileSync(process.execPath, [main, 'completion', shell], { encoding: 'utf8' }))
  }
  write(stage, '/usr/share/man/man1/agent.1.gz', gzip(manPage(version, date.toISOString().slice(0, 10))))
  write(stage, `${doc}/copyright`, copyrightFile(metafile, runtime.nodeLicense))
  write(stage, `${doc}/README.md.gz`, gzip(readFileSync(join(root, 'README.md'), 'utf8')))
  const changes = `undernet (${version}) unstable; urgency=medium

  * Release ${version}.

 -- ${MAINTAINER}  ${date.toUTCString().replace('GMT', '+0000')}
`
  write(stage, `${doc}/changelog.gz`, gzip(changes))
  write(stage, '/usr/share/lintian/overrides/undernet', OVERRIDES)
}

/** What lintian is told, each with its reason. */
const OVERRIDES = `# Node is a part of this package: this one is what it is tested with, as its makers built it.
undernet: embedded-library *
undernet: hardening-no-pie *
# The licenses of others are there word for word, as they ask for.
undernet: copyright-file-contains-full-apache-2-license
undernet: old-fsf-address-in-copyright-file
`

function writeControl(stage: string, of: { version: string; architecture: Architecture; libraries: string[] }): void {
  const files = filesBelow(stage)
  // As dpkg-gencontrol counts: each file by itself, and a KiB for a directory.
  const installedKiB = files.reduce((sum, file) => sum + Math.ceil(statSync(join(stage, file)).size / 1024), 0)
  const sums = files
    .filter((file) => `/${file}` !== SERVICE_CONFIG)
    .map(
      (file) =>
        `${createHash('md5')
          .update(readFileSync(join(stage, file)))
          .digest('hex')}  ${file}\n`,
    )
  write(stage, '/DEBIAN/control', controlFile({ ...of, installedKiB, maintainer: MAINTAINER }))
  write(stage, '/DEBIAN/conffiles', `${SERVICE_CONFIG}\n`)
  write(stage, '/DEBIAN/md5sums', sums.join(''))
  for (const [name, text] of Object.entries(maintainerScripts)) write(stage, `/DEBIAN/${name}`, text, 0o755)
}

/** Owners, order and times are dpkg-deb's to make equal; modes are ours, whatever the umask was. */
function pack(stage: string, file: string, epoch: string, how: readonly string[]): string {
  chmodSync(stage, 0o755)
  for (const entry of readdirSync(stage, { recursive: true, withFileTypes: true })) {
    const path = join(entry.parentPath, entry.name)
    const isProgram = entry.isDirectory() || (statSync(path).mode & 0o100) !== 0
    chmodSync(path, isProgram ? 0o755 : 0o644)
  }
  mkdirSync(dirname(file), { recursive: true })
  // Beside it first: who looks finds a whole package, or none.
  const arriving = `${file}.part`
  execFileSync('dpkg-deb', ['--root-owner-group', ...how, '--build', stage, arriving], {
    env: { ...process.env, SOURCE_DATE_EPOCH: epoch, TZ: 'UTC', LC_ALL: 'C' },
    stdio: ['ignore', 'ignore', 'inherit'],
    timeout: PACK_MS_MAX,
  })
  renameSync(arriving, file)
  return file
}

function write(stage: string, place: string, content: string | Uint8Array, mode = 0o644): void {
  const file = join(stage, place)
  mkdirSync(dirname(file), { recursive: true })
  writeFileSync(file, content)
  chmodSync(file, mode)
}

/** Without a time or a name in it. */
function gzip(text: string): Uint8Array {
  return gzipSync(text, { level: 9 })
}

/** Relative to the directory, sorted. */
function filesBelow(directory: string): string[] {
  return readdirSync(directory, { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile())
    .map((entry) => relative(directory, join(entry.parentPath, entry.name)))
    .sort()
}

/** Seconds: when these sources were made. */
function sourceDate(): string {
  const said = process.env.SOURCE_DATE_EPOCH ?? lastCommit()
  if (!/^\d{1,10}$/.test(said)) throw new Error(`SOURCE_DATE_EPOCH=${said} is no time in seconds since 1970`)
  return said
}

function lastCommit(): string {
  try {
    return execFileSync('git', ['log', '-1', '--format=%ct'], { cwd: root, encoding: 'utf8' }).trim()
  } catch (cause) {
    throw new Error('this is no clone: set SOURCE_DATE_EPOCH to when these sources were made', { cause })
  }
}

if (import.meta.main) {
  const { values } = parseArgs({
    options: {
      arch: { type: 'string', default: OURS[process.arch] ?? '' },
      out: { type: 'string', default: join(root, 'dist') },
      version: { type: 'string' },
      zstd: { type: 'boolean', default: false },
    },
  })
  const architecture = ARCHITECTURES.find((one) => one === values.arch)
  if (architecture === undefined) {
    process.stderr.write(`There is no package for ${values.arch}: choose --arch ${ARCHITECTURES.join(' or ')}.\n`)
    process.exit(2)
  }
  const file = await buildDeb({
    architecture,
    outdir: resolve(values.out),
    ...(values.version !== undefined && { version: values.version }),
    packed: values.zstd ? 'zstd' : 'xz',
  })
  process.stdout.write(`${file}, ${(statSync(file).size / 2 ** 20).toFixed(1)} MiB\n`)
}
