/**
 * `unit` in parallel, modules shared by the files of a worker, since loading them for each took longer than most tests; `alone` beside it,
 * which changes modules or the process for itself; then `crowd`, which needs the machine for itself, one file at a time; then `cluster` (several real agents)
 * and `lab` (network namespaces, real Nix), three files at a time: most of their time they wait, and what they promise in seconds has room.
 */
import { globSync, readFileSync } from 'node:fs'
import { defineConfig } from 'vitest/config'

/** Thirty agents, twenty that start at once, and a build by Nix, whose builder was killed beside tests that build with Nix, too. */
const CROWD = ['test/cluster/thirty.test.ts', 'test/cluster/fleet.test.ts', 'test/lab/nix-package.test.ts']
const UNIT = ['test/{agent,nix,protocols}/**/*.test.ts', 'test/architecture.test.ts']
const ALONE = globSync(UNIT).filter((path) => /vi\.mock\(|process\.env\.PATH = /.test(readFileSync(path, 'utf8')))
/** Most wait: for a disk, a process, a peer; or for their turn, on a machine where all take long. */
const unit = { root: '.', testTimeout: 60_000, maxWorkers: 5, sequence: { groupOrder: 0 } } as const
const patient = {
  pool: 'forks',
  testTimeout: 120_000,
  hookTimeout: 120_000,
  globalSetup: 'test/shared-bundle.ts',
} as const
const oneAtATime = { ...patient, fileParallelism: false } as const
const threeAtATime = { ...patient, maxWorkers: 3 } as const

export default defineConfig({
  test: {
    projects: [
      {
        test: {
          name: 'unit',
          include: UNIT,
          exclude: ALONE,
          isolate: false,
          ...unit,
        },
      },
      {
        test: {
          name: 'alone',
          include: ALONE,
          ...unit,
        },
      },
      {
        test: {
          name: 'crowd',
          root: '.',
          include: CROWD,
          sequence: { groupOrder: 1 },
          ...oneAtATime,
        },
      },
      {
        test: {
          name: 'cluster',
          root: '.',
          include: ['test/cluster/**/*.test.ts'],
          exclude: CROWD,
          sequence: { groupOrder: 2 },
          ...threeAtATime,
        },
      },
      {
        test: {
          name: 'lab',
          root: '.',
          include: ['test/lab/**/*.test.ts'],
          exclude: CROWD,
          sequence: { groupOrder: 2 },
          ...threeAtATime,
        },
      },
    ],
  },
})
