/**
 * The rules of the structure, and the only place where they are written: which folder may import which, that no file imports itself
 * through others, that the command line stays light, that each file says what it is, and that each protocol has a specification and
 * vectors.
 */
import { existsSync, globSync, readFileSync } from 'node:fs'
import { dirname, join, normalize } from 'node:path'
import { describe, expect, it } from 'vitest'

/**
 * Each folder of agent/ and what it may import there, beside itself and protocols/. What composes (node.ts and node/) may import all,
 * and nobody imports it. Files right below agent/ (error, log, ...) and the configuration are the ground that everything stands on.
 */
const COMPOSES = 'node'
const GROUND = 'config'
const ARROWS: Record<string, readonly string[]> = {
  [GROUND]: [],
  state: [],
  service: [],
  identity: ['state'],
  backup: ['identity', 'state'],
  http: [],
  api: ['http'],
  cli: ['api', 'install', 'service'],
  install: ['api', 'service'],
  mesh: ['identity', 'state'],
  catalog: ['identity', 'mesh', 'state'],
  metrics: [],
  membership: ['catalog', 'identity', 'mesh', 'state'],
  content: ['mesh', 'state'],
  artifacts: ['catalog', 'content'],
  nix: ['catalog', 'content', 'http', 'identity', 'state'],
  oci: ['catalog', 'content', 'http', 'identity', 'state'],
  discovery: [],
  routing: ['catalog', 'identity', 'mesh', 'state'],
}

/** What makes a start slow (facts measured: 40 to 900 ms): the command line may load none of it. */
const HEAVY = /^(libp2p|@libp2p\/|@chainsafe\/|@multiformats\/|zod|pino|fastify|koffi|node:sqlite|node:http$)/

const sources = globSync(['agent/**/*.ts', 'protocols/**/*.ts', 'nix/**/*.ts', 'bench/**/*.ts', 'test/**/*.ts'])
const text = (file: string) => readFileSync(file, 'utf8')

/** Import specifiers that load code when `file` is loaded: not types, and not `await import(...)`. */
function importsOf(file: string, { types = false } = {}): string[] {
  const found = text(file).matchAll(/^(?:import|export)\s+(?!type\s)(?:[^'"]*?\sfrom\s+)?['"]([^'"]+)['"]/gm)
  const typed = types ? text(file).matchAll(/^(?:import|export)\s+type\s[^'"]*?\sfrom\s+['"]([^'"]+)['"]/gm) : []
  return [...found, ...typed].map((match) => match[1] ?? '')
}

function resolved(file: string, specifier: string): string | undefined {
  return specifier.startsWith('.') ? normalize(join(dirname(file), specifier)) : undefined
}

/** The folder of agent/ that a file is in; undefined for files right below agent/ and elsewhere. */
function folderOf(file: string): string | undefined {
  return /^agent\/([^/]+)\//.exec(file)?.[1]
}

describe('structure', () => {
  it('has arrows between folders only where they are allowed', () => {
    const wrong: string[] = []
    for (const file of sources.filter((one) => /^(agent|protocols)\//.test(one))) {
      for (const target of importsOf(file, { types: true }).map((one) => resolved(file, one))) {
        if (target === undefined) continue
        const from = folderOf(file)
        const to = folderOf(target)
        if (file.startsWith('protocols/') && target.startsWith('agent/')) wrong.push(`${file} -> ${target}`)
        if (target === 'agent/node.ts') wrong.push(`${file} -> ${target}`)
        if (from === undefined || to === undefined || from === to || to === GROUND || from === COMPOSES) continue
        if (!ARROWS[from]?.includes(to)) wrong.push(`${file} -> ${target}`)
      }
    }
    expect(wrong).toEqual([])
  })

  it('knows every folder of agent/', () => {
    const folders = new Set(sources.map(folderOf).filter((one) => one !== undefined))
    expect([...folders].filter((one) => one !== COMPOSES && ARROWS[one] === undefined)).toEqual([])
  })

  it('has no import cycles', () => {
    const done = new Set<string>()
    const visit = (file: string, path: string[]): string[] | undefined => {
      if (path.includes(file)) return [...path.slice(path.indexOf(file)), file]
      if (done.has(file) || !existsSync(file) || !file.endsWith('.ts')) return undefined
      for (const specifier of importsOf(file, { types: true })) {
        const target = resolved(file, specifier)
        const cycle = target && visit(target, [...path, file])
        if (cycle) return cycle
      }
      done.add(file)
      return undefined
    }
    expect(sources.map((file) => visit(file, [])).filter((cycle) => cycle !== undefined)).toEqual([])
  })

  it('keeps the command line light: what it loads before it knows the command, and for each command but start', () => {
    const heavy: string[] = []
    const seen = new Set<string>()
    const visit = (file: string, path: string[]) => {
      if (seen.has(file) || !file.endsWith('.ts')) return
      seen.add(file)
      for (const specifier of importsOf(file)) {
        const target = resolved(file, specifier)
        if (target) visit(target, [...path, file])
        else if (HEAVY.test(specifier)) heavy.push(`${[...path, file].join(' -> ')} -> ${specifier}`)
      }
    }
    for (const file of ['agent/main.ts', ...globSync('agent/cli/*.ts')]) visit(file, [])
    expect(heavy).toEqual([])
  })

  it('opens every file with a comment that says what it is', () => {
    expect(sources.filter((file) => !/^(#!.*\n)?\/\*\*/.test(text(file)))).toEqual([])
  })

  it('keeps a file to one noun: under 450 lines', () => {
    const long = sources.filter((file) => /^(agent|protocols)\//.test(file) && text(file).split('\n').length > 450)
    expect(long).toEqual([])
  })

  it('gives each protocol a specification and vectors', () => {
    const folders = [...new Set(globSync('protocols/*/*.ts').map(dirname)), 'protocols']
    const missing = folders.flatMap((folder) => ['spec.md', 'vectors.json'].map((name) => join(folder, name)))
    expect(missing.filter((file) => !existsSync(file))).toEqual([])
  })

  it("holds the user's top level, and nothing else", () => {
    const allowed =
      /^(agent|protocols|nix|test|bench|package\.json|package-lock\.json|tsconfig\.json|flake\.nix|flake\.lock|LICENSE|README\.md|CHANGELOG\.md|SECURITY\.md|node_modules|dist|\..*)$/
    expect(globSync('*').filter((name) => !allowed.test(name))).toEqual([])
  })
})
