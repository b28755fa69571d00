# Every task of the project. `make` lists them.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

CARGO ?= cargo

.PHONY: help
help: ## List the tasks
	@awk -F ':.*## ' '/^[a-z][a-z0-9-]*:.*## / { printf "  make %-16s %s\n", $$1, $$2 } /^##@ / { print "\n" substr($$0, 5) }' $(MAKEFILE_LIST)

##@ Try it
.PHONY: demo cluster images down kubeconfig endpoint token
demo: ## From nothing to a streaming VX11 cluster on a real Kubernetes
	@tests/demo.sh
cluster: ## Bring up the test cluster (kind), or find it running
	@tests/cluster/up.sh
images: ## Build both images and load them into the test cluster
	@tests/cluster/images.sh
down: ## Remove the test cluster and everything it started
	@tests/cluster/down.sh
kubeconfig: ## Print the path of the test cluster's kubeconfig
	@tests/show.sh kubeconfig
endpoint: ## Print the base URL of the demo's VX11 cluster
	@tests/show.sh endpoint
token: ## Print the principal token of the demo's VX11 cluster
	@tests/show.sh token

##@ Check and test
.PHONY: check lint fmt fmt-check check-generated check-scripts check-chart check-docs test test-unit test-e2e fuzz simulate
check: fmt-check lint test-unit check-generated check-scripts check-chart check-docs ## Everything that needs no cluster
test: test-unit test-e2e ## Every test: unit, property, snapshot, API server, end to end
test-unit: ## Unit, property, snapshot and browser tests
	@tests/prerequisites.sh
	@tests/twice.sh --workspace --exclude vx11-tests
	@tests/twice.sh -p vx11-tests --lib
test-e2e: ## API-server and end-to-end tests on the test cluster
	@tests/e2e.sh
lint: ## Clippy with every warning denied
	$(CARGO) clippy -q --workspace --all-targets -- -D warnings
fmt: ## Format the code
	$(CARGO) fmt --all
fmt-check: ## Say whether the code is formatted
	$(CARGO) fmt --all --check
check-generated: ## Say whether the generated files are current
	@tests/generate.sh --check
check-scripts: ## Check every shell script with shellcheck
	@tests/check-scripts.sh
check-chart: ## Check the chart: lint, rendering, refusals, rights, versions
	@tests/check-chart.sh
check-docs: ## Hold the pages against the code
	@tests/check-docs.sh
fuzz: ## Fuzz every parser, 30 s each
	@tests/fuzz.sh
simulate: ## Replay the scaling traces in virtual time and check every invariant
	$(CARGO) run -q --release -p vx11-controller -- simulate

##@ Measure
.PHONY: bench bench-backend bench-operator
bench: bench-backend bench-operator ## Every figure of docs/benchmarks.md; wants an idle machine for 40 minutes
bench-backend: ## The backend beside a floor, nchan, axum and FastAPI
	@tests/bench.sh backend
bench-operator: ## The operator on the test cluster
	@tests/bench.sh operator

##@ Work on it
.PHONY: generate clean
generate: ## Write the files derived from the API types: CRD, the chart's copy, docs/api.md
	@tests/generate.sh
clean: ## Remove build output (the cluster: make down)
	$(CARGO) clean
