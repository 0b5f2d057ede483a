sortable(document.querySelector("#table table"), document.querySelector("#sorted"));
document.documentElement.dataset.pending = "0";
document.documentElement.dataset.ready = "";
