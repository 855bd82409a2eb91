/**
 * `npm run build`: the agent as plain JavaScript in dist/ (or in a new directory that is given), for what is installed. One entry, main.js, and
 * one for a thread that the daemon starts; the daemon and the heavier commands are chunks of their own, loaded when they are needed.
 *
 * koffi stays outside: it carries native code that has to lie beside its own files. QUIC's lies beside main.js, for the platforms that were
 * installed here: without it the agent runs, by TCP alone. The output depends on the sources only.
 */
import { chmodSync, copyFileSync, globSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { basename, dirname, join, resolve } from 'node:path'
import { fileURLToPath, pathToFileURL } from 'node:url'
import { build, type Metafile, type Plugin } from 'esbuild'

const root = fileURLToPath(new URL('..', import.meta.url))

/** CommonJS packages inside an ES module call `require` for Node's builtins. */
const REQUIRE = `import { createRequire as __createRequire } from 'node:module'; const require = __createRequire(import.meta.url);`

/**
 * What the agent never uses of its dependencies, and one large table of numbers that it uses once an hour: a fifth of the bundle, which
 * would be parsed at each start and kept in memory (8 MB where nothing is compiled yet).
 */
const lean: Plugin = {
  name: 'lean',
  setup(bundling) {
    // Messages of errors in fifty languages. English comes from a file of its own.
    bundling.onLoad({ filter: /\/zod\/v4\/locales\/index\.js$/ }, ({ path }) => ({
      contents: `export { default as en } from './en.js'`,
      resolveDir: dirname(path),
    }))
    // See agent/schemaless.ts.
    bundling.onLoad({ filter: /\/@fastify\/(ajv-compiler|fast-json-stringify-compiler)\/index\.js$/ }, () => ({
      contents: 'module.exports = undefined',
    }))
    bundling.onLoad({ filter: /\/kad-dht\/dist\/src\/routing-table\/generated-prefix-list\.js$/ }, async ({ path }) => {
      const { default: numbers } = (await import(pathToFileURL(path).href)) as { default: number[] }
      return { contents: packed(numbers) }
    })
  },
}

/** A module with the same numbers as text, three bytes each, unpacked when one is asked for. */
function packed(numbers: readonly number[]): string {
  const bytes = Buffer.alloc(numbers.length * 3)
  for (const [nth, number] of numbers.entries()) bytes.writeUIntLE(number, nth * 3, 3)
  return `
    let bytes
    const unpack = () => Buffer.from('${bytes.toString('base64')}', 'base64')
    export default new Proxy([], { get: (_, nth) => (bytes ??= unpack()).readUIntLE(nth * 3, 3) })
  `
}

/** The release that a bundle says it is, when that is not what package.json has. */
function released(version: string): Plugin {
  return {
    name: 'released',
    setup(bundling) {
      bundling.onLoad({ filter: /\/package\.json$/ }, ({ path }) => {
        if (path !== join(root, 'package.json')) return undefined
        return { contents: JSON.stringify({ ...JSON.parse(readFileSync(path, 'utf8')), version }), loader: 'json' }
      })
    },
  }
}

/** Writes the bundle into a directory; what it was made of is returned. */
export async function bundle(outdir: string, { version }: { version?: string } = {}): Promise<Metafile> {
  const { metafile } = await build({
    absWorkingDir: root,
    // The thread is started by the name of its file: see agent/content/lane-workers.ts.
    entryPoints: { main: 'agent/main.ts', 'lane-worker': 'agent/content/lane-worker.ts' },
    outdir,
    bundle: true,
    splitting: true,
    format: 'esm',
    platform: 'node',
    target: 'node24',
    minify: true,
    // Names of classes are seen in errors and logs.
    keepNames: true,
    legalComments: 'none',
    external: ['koffi'],
    plugins: [lean, ...(version === undefined ? [] : [released(version)])],
    banner: { js: REQUIRE },
    metafile: true,
    logLevel: 'warning',
  })
  chmodSync(join(outdir, 'main.js'), 0o755)
  // Node reads each file twice to find out what it is, where nobody says so.
  writeFileSync(join(outdir, 'package.json'), `${JSON.stringify({ type: 'module' })}\n`)
  // Where the package looks first: beside the chunk that it is in.
  for (const file of globSync('node_modules/@chainsafe/libp2p-quic-*/*.node', { cwd: root }))
    copyFileSync(join(root, file), join(outdir, basename(file)))
  return metafile
}

if (import.meta.main) {
  const outdir = resolve(process.argv[2] ?? join(root, 'dist'))
  if (process.argv[2] === undefined) rmSync(outdir, { recursive: true, force: true })
  const { outputs } = await bundle(outdir)
  const sizes = Object.values(outputs).map(({ bytes }) => bytes)
  const totalBytes = sizes.reduce((sum, bytes) => sum + bytes, 0)
  process.stdout.write(
    `${join(outdir, 'main.js')} and ${sizes.length - 1} chunks, ${Math.round(totalBytes / 1024)} KiB\n`,
  )
}
